"""Where each cell is, from what is on the disk."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml
from conftest import composed

from kvcore.cell import lock_path
from kvcore.grid.frozen import FrozenGrid, freeze, read_frozen
from kvcore.grid.launching import launched, progress_of
from kvcore.grid.states import STATES, note_failure, note_folder, state_of, states
from kvcore.locking import locked
from kvcore.results.collection import Problem
from kvcore.schema import SettingError, parse_settings


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


@pytest.mark.parametrize("content", ["", '{"id": ', "[]"])
def test_a_damaged_record_is_not_done(content: str, grid: FrozenGrid) -> None:
    (begun(grid, 0) / "record.json").write_text(content)
    state, reason, _ = state_of(grid.output_root, grid.cells[0].key)
    assert state == "failed"
    assert reason.endswith("; remove its folder to run that cell anew")
    assert 0 in launched(grid, "missing").to_run


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


@pytest.mark.parametrize("note", ['{"folder": 5}', '{"folder": "elsewhere"}', '{"reason": ["no"]}', "[]"])
def test_a_foreign_note_is_a_cell_that_is_pending(grid: FrozenGrid, note: str) -> None:
    path = grid.output_root / "grids" / "cells" / f"{grid.cells[0].key}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(note)
    assert state_of(grid.output_root, grid.cells[0].key).state == "pending"


@pytest.mark.parametrize("content", ["{broken", "[]", '{"schema_version": 1, "name": "x", "cells": [{"key": "a"}]}'])
def test_a_damaged_grid_is_named_and_the_others_are_told(grid: FrozenGrid, content: str) -> None:
    damaged = grid.path.with_name("damaged-0.json")
    damaged.write_text(content)
    problems: list[Problem] = []
    assert len(states(grid.output_root, unreadable=problems.append)) == 6
    assert [problem.path for problem in problems] == [str(damaged)]


def test_a_grid_of_cells_without_settings_is_damaged(grid: FrozenGrid) -> None:
    content = json.loads(grid.path.read_text())
    del content["cells"][0]["settings"]["model"]
    grid.path.write_text(json.dumps(content))
    with pytest.raises(SettingError, match="no grid that can be read .*'model'"):
        read_frozen(grid.path)


def test_thousands_of_cells_are_looked_at_in_seconds(tmp_path: Path) -> None:
    """Settings are read ten times as fast as by the loader that is written in Python."""
    settings = parse_settings(composed("grid=few")).model_dump(mode="json")
    text = yaml.safe_dump(settings)
    for number in range(200):
        folder = tmp_path / "runs" / "model" / "data-english" / f"id{number}"
        folder.mkdir(parents=True)
        (folder / "settings.yaml").write_text(text)
    start = time.process_time()
    yaml.safe_load(text)
    slow = time.process_time() - start
    start = time.process_time()
    assert len(states(tmp_path)) == 200
    assert time.process_time() - start < 200 * slow / 2


def test_a_cell_whose_data_has_changed_is_run_again(tmp_path: Path) -> None:
    """Its settings, which name the file, are the same; its id, which stands for the content, is not."""
    data, later = tmp_path / "data.jsonl", time.time() + 60
    data.touch()
    cell = parse_settings(
        composed(f"output_root={tmp_path}", "dataset=local", f"dataset.path={data}", "rank_budget=none")
    )
    grid = launched(freeze([cell]), "missing")
    record = begun(grid, 0) / "record.json"
    record.write_text("{}")
    os.utime(record, (later, later))
    assert launched(grid, "missing").to_run == ()
    os.utime(record, (1, 1))
    assert launched(grid, "missing").to_run == (0,)
    assert launched(grid, "failed").to_run == ()
    data.unlink()
    assert launched(grid, "missing").to_run == ()


def test_a_finished_cell_that_is_not_good_enough_any_more_has_failed(grid: FrozenGrid) -> None:
    """Such as one with a failed gate, which gates=warn has recorded, asked for with gates=fail."""
    key = grid.cells[0].key
    record = begun(grid, 0) / "record.json"
    record.write_text("{}")
    os.utime(record, (1, 1))
    note_failure(grid.output_root, key, ValueError("gate full_rank"))
    assert state_of(grid.output_root, key)[:2] == ("failed", "gate full_rank")
    assert launched(grid, "failed").to_run == (0,)  # and this forgets the failure
    assert state_of(grid.output_root, key).state == "done"
    note_failure(grid.output_root, key, ValueError("the weights are gone"))
    os.utime(record, (time.time() + 60, time.time() + 60))  # finished later by a command of its own
    assert state_of(grid.output_root, key).state == "done"


@pytest.mark.parametrize("place", ["grids", "grids/cells"])
def test_something_in_the_way_of_a_grid(place: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    cells = [parse_settings(composed(f"output_root={tmp_path}"))]
    with pytest.raises(SettingError, match=r"^output_root = .*: cannot be written to"):
        launched(freeze(cells), "missing")


def test_a_cell_of_two_grids_is_counted_once(tmp_path: Path) -> None:
    """A setting that changes no number makes another grid of the same cells."""
    overrides = composed(f"output_root={tmp_path}", "grid=few")
    first = launched(freeze([parse_settings(overrides)]), "missing")
    again = overrides | {"capture": overrides["capture"] | {"batch_tokens": 7}}
    second = launched(freeze([parse_settings(again)]), "missing")
    assert first.path != second.path
    folder = begun(first, 0)
    note_folder(tmp_path, second.cells[0].key, folder)
    (folder / "record.json").write_text("{}")
    assert list(states(tmp_path)["state"]) == ["done"]


def test_what_waits_is_told_of_whichever_grid_was_submitted(grid: FrozenGrid) -> None:
    part = launched(freeze([grid.settings(4), grid.settings(5)]), "missing")
    for submitted, number in ((grid, 4), (part, 0)):
        waiting = {submitted.path: {number: "pending: Priority"}}
        found = states(grid.output_root, lambda path, waiting=waiting: waiting.get(path, {}))
        assert len(found) == 6
        assert list(found["reason"]).count("in Slurm's queue, pending: Priority") == 1
