"""The report: one self-contained page of a grid, which opens from disk without network."""

from kvcore.results.report.page import DETAILED_CELLS, WrittenReport, write_report

__all__ = ["DETAILED_CELLS", "WrittenReport", "write_report"]
