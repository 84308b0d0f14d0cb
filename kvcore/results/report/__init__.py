"""The report: one self-contained page of a grid, which opens from disk without network."""

from kvcore.results.report.page import WrittenReport, write_report

__all__ = ["WrittenReport", "write_report"]
