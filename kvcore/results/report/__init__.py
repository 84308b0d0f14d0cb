"""The report: one self-contained page of a grid, which opens from disk without network."""

from kvcore.results.report.content import no_cells
from kvcore.results.report.page import DETAILED_CELLS, WrittenReport, write_report

__all__ = ["DETAILED_CELLS", "WrittenReport", "no_cells", "write_report"]
