"""Which cells of a grid are to be run, and how far they are."""

import time
from collections import Counter
from typing import Literal

from kvcore.grid.frozen import FrozenGrid
from kvcore.grid.states import forget_failure, state_of


def launched(grid: FrozenGrid, rerun: Literal["missing", "failed"]) -> FrozenGrid:
    """Choose the cells of a grid that are to be run, and write it down.

    Args:
        grid: All cells.
        rerun: `missing`: those that are not finished; `failed`: only those that have failed.

    Raises:
        SettingError: `output_root` cannot be written to.
    """
    root = grid.output_root
    found = [state_of(root, cell.key).state for cell in grid.cells]
    to_run = [n for n, state in enumerate(found) if (state == "failed" if rerun == "failed" else state != "done")]
    written = grid.launch(to_run)
    for number in to_run:
        forget_failure(root, grid.cells[number].key)
    return written


def count_states(grid: FrozenGrid) -> Counter[str]:
    """Count the states of the cells that the last launch of a grid is about."""
    return Counter(state_of(grid.output_root, grid.cells[number].key).state for number in grid.to_run)


def progress_of(grid: FrozenGrid) -> str:
    """Say how many of a launch's cells are done or failed, and how long the others will take at this speed."""
    counts = count_states(grid)
    ended = counts["done"] + counts["failed"]
    line = f"{grid.name}: {counts['done']} of {len(grid.to_run)} cells done, {counts['failed']} failed"
    if ended:
        left = (time.time() - grid.launched) / ended * (len(grid.to_run) - ended)
        line += f", about {_duration(left)} left"
    return line


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
