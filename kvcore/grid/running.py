"""Run the cells of a frozen grid: one that fails does not stop the others."""

import sys
from functools import cache
from pathlib import Path

from rich.console import Console

from kvcore.cell import Cell
from kvcore.grid.frozen import read_frozen
from kvcore.grid.launching import count_states, progress_of
from kvcore.grid.states import note_failure, note_folder
from kvcore.pipeline import run_cell
from kvcore.preparation import ModelLoader
from kvcore.processes import Processes, join
from kvcore.schema import BusyError, LaunchSettings, first_line


def run_frozen_cell(
    launch: LaunchSettings, *, console: Console | None, loader: ModelLoader, processes: Processes
) -> bool:
    """Run one cell of a grid; a failure is written down, and said in a line.

    Args:
        launch: Names the grid and the cell.
        console: Where results are printed.
        loader: Keeps the model for the next cell.
        processes: Those that share the cell. Where they are several, a failure ends them all.

    Returns:
        Whether it did not fail.

    Raises:
        SettingError: The grid cannot be read, or has no such cell.
    """
    frozen, number = launch.require_frozen_cell()
    grid = read_frozen(Path(frozen))
    settings, cell = grid.settings(number), grid.cells[number]
    root = grid.output_root
    if launch.fail_fast and count_states(grid)["failed"]:
        return True

    def say(line: str) -> None:
        if processes.is_first:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - how far the grid is, for whoever watches

    def begin(begun: Cell) -> None:
        if processes.is_first:
            note_folder(root, cell.key, root / begun.folder.relative_to(begun.output_root))

    say(f"{progress_of(grid)}; next: {cell.label}")
    try:
        path = run_cell(settings, console=console, loader=loader, processes=processes, begin=begin)
        if console is not None:
            console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    except BusyError as error:
        say(f"left to others: {cell.label}: {error}")
    except Exception as error:
        say(f"failed: {cell.label}: {first_line(error)}")
        try:
            note_failure(root, cell.key, error)
        except OSError as unwritten:  # such as a full disk; the others still run, and this one is not done
            say(f"no word of this could be left: {unwritten}")
        if processes.count > 1:  # the others may be waiting for this one
            raise SystemExit(1) from error
        return False
    return True


# These two live here, not in experiments/: launchers send what they run to other processes, which import this.
@cache
def processes() -> Processes:
    """Return those that torchrun has started, joined when the first cell needs them."""
    return join()


@cache
def model_loader() -> ModelLoader:
    """Return the one that keeps a model from cell to cell of a grid."""
    return ModelLoader()
