"""Where each cell is, from what is on the disk."""

import json
from pathlib import Path

import pytest
from conftest import composed

from kvcore.cell import lock_path
from kvcore.grid.frozen import FrozenGrid, freeze
from kvcore.grid.launching import launched, progress_of
from kvcore.grid.states import STATES, note_failure, note_folder, state_of, states
from kvcore.locking import locked
from kvcore.schema import parse_settings


@pytest.fixture
def grid(tmp_path: Path) -> FrozenGrid:
    cells = [parse_settings(composed(f"output_root={tmp_path}", "grid=few", f"seed={seed}")) for seed in range(6)]
    return launched(freeze(cells), "missing")


def begun(grid: FrozenGrid, number: int) -> Path:
    """Make a folder as a cell that begins does."""
    folder = grid.output_root / "runs" / "model" / "data-english" / f"id{number}"
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(json.dumps(dict(grid.cells[number].settings)))
    note_folder(grid.output_root, grid.cells[number].key, folder)
    return folder


def test_every_state(grid: FrozenGrid) -> None:
    root = grid.output_root
    (begun(grid, 0) / "record.json").write_text("{}")
    (begun(grid, 2) / "failure.json").write_text(json.dumps({"stage": "capture", "error": "too hot\nfor words"}))
    note_failure(root, grid.cells[3].key, ValueError("no such model"))
    begun(grid, 4)
    lock = lock_path(root, begun(grid, 1))
    lock.parent.mkdir(parents=True)
    with locked(lock):
        found = states(root)
    assert list(found["state"]) == ["done", "running", "failed", "failed", "interrupted", "pending"]
    assert list(found["reason"][2:4]) == ["capture: too hot", "no such model"]
    assert set(found["grid"]) == {"few"}
    assert set(found["state"]) == set(STATES)
    assert state_of(root, grid.cells[1].key).state == "interrupted"  # now that nobody holds it


def test_which_cells_a_launch_runs(grid: FrozenGrid) -> None:
    (begun(grid, 0) / "record.json").write_text("{}")
    failed = begun(grid, 2)
    (failed / "failure.json").write_text("{}")
    note_failure(grid.output_root, grid.cells[3].key, ValueError("no such model"))
    assert launched(grid, "failed").to_run == (2, 3)
    assert (
        state_of(grid.output_root, grid.cells[2].key).state == "interrupted"
    )  # a failure is forgotten once it is tried again
    assert state_of(grid.output_root, grid.cells[3].key).state == "pending"
    assert launched(grid, "missing").to_run == (1, 2, 3, 4, 5)
    assert launched(grid, "failed").to_run == ()


def test_progress_counts_this_launch_only(grid: FrozenGrid) -> None:
    (begun(grid, 0) / "record.json").write_text("{}")
    again = launched(grid, "missing")
    assert progress_of(again) == "few: 0 of 5 cells done, 0 failed"
    (begun(again, 1) / "record.json").write_text("{}")
    (begun(again, 2) / "failure.json").write_text("{}")
    assert progress_of(again).startswith("few: 1 of 5 cells done, 1 failed, about ")


def test_a_failure_before_there_is_a_folder_again(grid: FrozenGrid) -> None:
    """Word of it is left though an earlier attempt had a folder."""
    begun(grid, 0)
    note_failure(grid.output_root, grid.cells[0].key, ValueError("the weights are gone"))
    assert state_of(grid.output_root, grid.cells[0].key)[:2] == ("failed", "the weights are gone")


def test_cells_of_no_grid_are_found_too(grid: FrozenGrid) -> None:
    begun(grid, 0)
    alone = grid.output_root / "runs" / "model" / "data-english" / "alone"
    alone.mkdir()
    (alone / "settings.yaml").write_text("{broken")
    found = states(grid.output_root)
    assert list(found["grid"]) == ["few"] * 6 + [""]
    assert found.iloc[6][["model", "state"]].tolist() == ["model", "failed"]
    assert "cannot be read" in found["reason"][6]


def test_a_damaged_note_is_a_cell_that_is_pending(grid: FrozenGrid) -> None:
    begun(grid, 0)
    (grid.output_root / "grids" / "cells" / f"{grid.cells[0].key}.json").write_text("{")
    assert state_of(grid.output_root, grid.cells[0].key).state == "pending"
