"""Which cells of a grid are to be run, and how far they are."""

import time
from collections import Counter
from pathlib import Path
from typing import Literal

from kvcore.cell import RECORD_NAME
from kvcore.grid.frozen import FrozenCell, FrozenGrid
from kvcore.grid.states import CellState, forget_failure, state_of


def launched(grid: FrozenGrid, rerun: Literal["missing", "failed"], *, forget: bool = True) -> FrozenGrid:
    """Choose the cells of a grid that are to be run, and write it down.

    Args:
        grid: All cells.
        rerun: `missing`: those that are not finished, or were made of files that have changed since; `failed`: only
            those that have failed.
        forget: Whether failures of these are forgotten now, not one by one when a queue has accepted them.

    Raises:
        SettingError: `output_root` cannot be written to.
    """
    root = grid.output_root
    found = [state_of(root, cell.key) for cell in grid.cells]
    to_run = [
        number
        for number, (cell, state) in enumerate(zip(grid.cells, found, strict=True))
        if (state.state == "failed" if rerun == "failed" else state.state != "done" or _outdated(cell, state))
    ]
    written = grid.launch(to_run)
    for number in to_run if forget else ():
        forget_failure(root, grid.cells[number].key)
    return written


def _outdated(cell: FrozenCell, state: CellState) -> bool:
    """Say whether a file that a finished cell is made of was changed after it; if in vain, its id is the same."""
    finished = (Path(state.folder) / RECORD_NAME).stat().st_mtime
    groups = [cell.settings[name] for name in ("model", "dataset", "rank_budget")]
    groups += [cell.settings["held_out"]["dataset"] or {}]
    paths = [Path(group["path"]).expanduser() for group in groups if group.get("path")]
    files = [file for path in paths for file in (path, *(path.iterdir() if path.is_dir() else ())) if file.exists()]
    return any(file.stat().st_ctime > finished for file in files)  # ctime: a copy may keep the time of its origin


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
