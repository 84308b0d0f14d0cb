"""Where each cell is: done, running, failed, interrupted or pending; known from what cells write, and nothing else.

A cell of a grid leaves word of its folder in `<output_root>/grids/cells/<key>.json` when it begins, and of a failure,
which may come before it has a folder.
"""

import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd
import yaml

from kvcore.cell import FAILURE_NAME, RECORD_NAME, SETTINGS_NAME, lock_path, write_atomically
from kvcore.grid.frozen import CELLS, FOLDER, FrozenCell, FrozenGrid, read_frozen
from kvcore.locking import is_locked
from kvcore.results.collection import Problem
from kvcore.schema import SettingError, first_line

State = Literal["done", "running", "failed", "interrupted", "pending"]
STATES: tuple[State, ...] = get_args(State)
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, and not everywhere
_DEPTH = 4  # of a cell's folder in output_root
STATE_COLUMNS = ["grid", "model", "dataset", "language", "rank_budget", "state", "reason", "folder"]


class CellState(NamedTuple):
    """How far a cell is.

    Attributes:
        state: done, running, failed, interrupted or pending.
        reason: Of a failure, in one line.
        folder: Of the cell, if it has one.
    """

    state: State
    reason: str = ""
    folder: str = ""


def note_folder(output_root: Path, key: str, folder: Path) -> None:
    """Leave word where a cell of a grid writes."""
    _note(output_root, key, {"folder": str(folder.relative_to(output_root))})


def note_failure(output_root: Path, key: str, error: Exception) -> None:
    """Leave word of a failure: it may have come before the cell had a folder."""
    failure = {"reason": first_line(error), "traceback": "".join(traceback.format_exception(error))}
    _note(output_root, key, _noted(output_root, key) | failure)


def forget_failure(output_root: Path, key: str) -> None:
    """Make a failed cell one that was not run, or was interrupted."""
    noted = _noted(output_root, key)
    if noted.get("folder"):
        (output_root / noted["folder"] / FAILURE_NAME).unlink(missing_ok=True)
    if noted.get("reason"):
        _note(output_root, key, {"folder": noted["folder"]} if noted.get("folder") else {})


def state_of(output_root: Path, key: str) -> CellState:
    """Return how far a cell of a grid is."""
    noted = _noted(output_root, key)
    found = state_in(output_root / noted["folder"]) if noted.get("folder") else CellState("pending")
    if noted.get("reason") and (
        found.state in ("pending", "interrupted")
        or (found.state == "done" and _is_newer(_note_path(output_root, key), Path(found.folder) / RECORD_NAME))
    ):
        return CellState("failed", noted["reason"], found.folder)
    return found


def _is_newer(note: Path, record: Path) -> bool:
    """Say whether a cell failed although it has a record, such as one of gates that now have to pass."""
    try:
        return note.stat().st_mtime_ns > record.stat().st_mtime_ns
    except OSError:  # removed a moment ago
        return False


def state_in(folder: Path) -> CellState:
    """Return how far the cell in a folder is."""
    where = str(folder)
    if (folder / RECORD_NAME).is_file():
        damage = _damage(folder / RECORD_NAME)
        return CellState("failed", damage, where) if damage else CellState("done", folder=where)
    if is_locked(lock_path(folder.parents[3], folder)):
        return CellState("running", folder=where)
    if (folder / FAILURE_NAME).is_file():
        return CellState("failed", _reason(folder / FAILURE_NAME), where)
    if folder.is_dir():
        return CellState("interrupted", "it was stopped; run again, it goes on", where)
    return CellState("pending")


def states_of(grid: FrozenGrid) -> pd.DataFrame:
    """Return one row for every cell of a grid, with the columns `STATE_COLUMNS`."""
    rows = [_row(grid.name, cell, state_of(grid.output_root, cell.key)) for cell in grid.cells]
    return pd.DataFrame(rows, columns=STATE_COLUMNS)


def states(
    output_root: Path,
    queued: Callable[[Path], Mapping[int, str]] = lambda _: {},
    unreadable: Callable[[Problem], None] = lambda _: None,
) -> pd.DataFrame:
    """Return one row for every cell of every grid, and for every other cell that was begun.

    Args:
        output_root: Where they are.
        queued: Says, for the file of a grid, which of its cells wait in a queue, by number; this becomes the reason
            of those that are not at work.
        unreadable: Told of each file of a grid that cannot be read; its cells that were begun count as those of none.

    Returns:
        The columns `STATE_COLUMNS`; `grid` is empty for cells of none.
    """
    grids: dict[Path, FrozenGrid] = {}
    for path in sorted((output_root / FOLDER).glob("*.json")):
        try:
            grids[path] = read_frozen(path)
        except SettingError as error:
            unreadable(Problem(str(path), f"is no grid that can be read ({first_line(error.__cause__ or error)})"))
    waiting = {
        grid.cells[number].key: said
        for path, grid in grids.items()
        for number, said in queued(path).items()
        if number < len(grid.cells)
    }
    rows: dict[str, dict[str, str]] = {}  # by folder, where there is one: cells of two grids may be the same
    for grid in grids.values():
        for cell in grid.cells:
            state = state_of(output_root, cell.key)
            if cell.key in waiting and state.state not in ("done", "running"):
                state = CellState("pending", f"in Slurm's queue, {waiting[cell.key]}", state.folder)
            rows.setdefault(state.folder or cell.key, _row(grid.name, cell, state))
    known = {row["folder"] for row in rows.values()}
    begun = (path.parent for path in sorted((output_root / "runs").glob(f"*/*/*/{SETTINGS_NAME}")))
    others = [_row_of_folder(folder) for folder in begun if str(folder) not in known]
    return pd.DataFrame([*rows.values(), *others], columns=STATE_COLUMNS)


def _row(grid: str, cell: FrozenCell, state: CellState) -> dict[str, str]:
    return {"grid": grid} | cell.names | state._asdict()


def _row_of_folder(folder: Path) -> dict[str, str]:
    try:
        return _row("", FrozenCell("", _settings_in(folder)), state_in(folder))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        model, data = folder.parts[-3:-1]
        unknown = CellState("failed", f"its settings cannot be read ({first_line(error)})", str(folder))
        return {"grid": "", "model": model, "dataset": data, "language": "", "rank_budget": ""} | unknown._asdict()


def _settings_in(folder: Path) -> dict[str, Any]:
    """Read a cell's settings, from its record where there is one: JSON is read a hundred times as fast as YAML."""
    try:
        settings: dict[str, Any] = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))["settings"]
        if all(isinstance(name, str) for name in FrozenCell("", settings).names.values()):
            return settings
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no record, or none that can be read
    return dict(yaml.load((folder / SETTINGS_NAME).read_text(encoding="utf-8"), _SafeLoader))  # noqa: S506


def _damage(record: Path) -> str:
    """Say what is wrong with a record that is there; empty where nothing is."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"its {RECORD_NAME} cannot be read ({first_line(error)}); remove its folder to run that cell anew"
    return "" if isinstance(found, dict) else f"its {RECORD_NAME} is no record; remove its folder to run that cell anew"


def _reason(failure: Path) -> str:
    try:
        content = json.loads(failure.read_text(encoding="utf-8"))
        return f"{content['stage'] or 'preparation'}: {content['error'].splitlines()[0]}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return f"its {FAILURE_NAME} cannot be read ({first_line(error)})"


def _note_path(output_root: Path, key: str) -> Path:
    return output_root / FOLDER / CELLS / f"{key}.json"


def _note(output_root: Path, key: str, content: dict[str, str]) -> None:
    path = _note_path(output_root, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content) + "\n")


def _noted(output_root: Path, key: str) -> dict[str, str]:
    try:
        noted = json.loads(_note_path(output_root, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(noted, dict) or not all(isinstance(value, str) for value in noted.values()):
        return {}
    depth = len(PurePath(noted.get("folder", "")).parts)
    return noted if depth in (0, _DEPTH) else {}
