"""Stage: the mirror of a cell in a tracker."""

from rich.console import Console

from kvcore.cell import Cell
from kvcore.results.tracking.tracker import mirror
from kvcore.schema import NoTracker


def track(cell: Cell, console: Console | None) -> None:
    """Mirror a cell that has just finished or failed, from what it has left on disk.

    At the end and at once: an interrupted cell has no half-written run, and nothing is lost where a process is killed.
    """
    tracker = cell.settings.tracker
    if not isinstance(tracker, NoTracker):
        mirror([cell.folder], tracker, cell.output_root, lambda line: _say(console, line))


def _say(console: Console | None, line: str) -> None:
    if console is not None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
