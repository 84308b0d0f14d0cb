"""A grid as a user meets it: it finishes although cells fail, and goes on where it was stopped."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import TEXTS, tiny_overrides
from scripts import call, command


@pytest.fixture
def overrides(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> list[str]:
    return [*tiny_overrides(tiny_folder, tiny_data, tmp_path / "outputs"), "grid=few"]


def records(folder: Path) -> dict[int, dict[str, object]]:
    """Return records by seed."""
    found = [json.loads(path.read_text()) for path in (folder / "outputs" / "runs").rglob("record.json")]
    return {record["settings"]["seed"]: record for record in found}


def test_cells_that_fail_do_not_stop_the_others(overrides: list[str], tmp_path: Path) -> None:
    limits = "dataset.max_tokens=100,100000,90"  # the data has fewer than the second
    done = call("run.py", "-m", *overrides, limits, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "few: 0 of 3 cells done, 0 failed; next: tiny on local, english, grid"
    assert lines[2].startswith("failed: tiny on local, english, grid: dataset.max_tokens = 100000: the selected")
    assert lines[3].startswith("few: 1 of 3 cells done, 1 failed, about ")
    assert len(lines) == 4, done.stderr
    assert "few: 3 cells, 2 done, 1 failed" in done.stdout
    (failure,) = (tmp_path / "outputs" / "runs").rglob("failure.json")
    failed = json.loads(failure.read_text())
    assert failed["stage"] == "read"
    assert "Traceback" in failed["traceback"]
    assert failed["settings"]["dataset"]["max_tokens"] == 100000

    shown = call("status.py", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "few: 3 cells, 2 done, 1 failed" in shown.stdout
    assert "100000" in shown.stdout.replace("\n", "")

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs" / "runs").rglob("record.json")}
    again = call("run.py", "-m", *overrides, limits, cwd=tmp_path)
    assert again.returncode == 1
    assert again.stderr.splitlines()[0].startswith("few: 0 of 1 cells done, 0 failed; next: ")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_failure_before_the_cell_is_known_and_its_mending(overrides: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    grid = [*overrides, f"dataset.path={tmp_path / 'data.jsonl'},{other}"]
    done = call("run.py", "-m", *grid, cwd=tmp_path)
    assert done.returncode == 1
    assert "few: 2 cells, 1 done, 1 failed" in done.stdout
    assert f"dataset.path = '{other}'" in done.stderr
    other.write_text("".join(f'{{"text": "{text}"}}\n' for text in reversed(TEXTS)), encoding="utf-8")
    mended = call("run.py", "-m", *grid, "rerun=failed", cwd=tmp_path)
    assert mended.returncode == 0, mended.stderr
    assert "few: 2 cells, 2 done" in mended.stdout
    assert len(mended.stderr.splitlines()) == 1


def test_fail_fast(overrides: list[str], tmp_path: Path) -> None:
    done = call("run.py", "-m", *overrides, "dataset.max_tokens=100000,100,90", "fail_fast=true", cwd=tmp_path)
    assert done.returncode == 1
    assert "few: 3 cells, 1 failed, 2 pending" in done.stdout
    assert not list((tmp_path / "outputs" / "runs").rglob("record.json"))


def test_mistakes_stop_a_grid_before_anything_runs(overrides: list[str], tmp_path: Path) -> None:
    for mistake, said in (
        ("seed=0,-1", "seed = -1: "),
        ("rerun=everything", "rerun = 'everything': "),
        ("fail_fast=perhaps", "fail_fast = 'perhaps': "),
        ("hydra/launcher=nothing", "hydra/launcher = 'nothing': there is no such option"),
    ):
        done = call("run.py", "-m", *overrides, mistake, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr.startswith(said)
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "outputs" / "runs").exists()
    assert call("status.py", cwd=tmp_path).returncode == 2


def slow(overrides: list[str], tmp_path: Path) -> list[str]:
    """Make the capture take seconds."""
    data = tmp_path / "data.jsonl"
    data.write_text(data.read_text(encoding="utf-8") * 60, encoding="utf-8")
    more = ["evaluation.max_tokens=500", "capture.batch_tokens=64", "capture.checkpoint_seconds=0"]
    return [*overrides, *more, "rank_budget.key_ratios=[1.0]"]


def test_two_processes_share_a_grid(overrides: list[str], tmp_path: Path) -> None:
    """They take different cells; none is run twice, and both spectra are those of undisturbed cells."""
    grid = command("run.py", "-m", *slow(overrides, tmp_path), "seed=0,1")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(grid, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=170) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "left to others: tiny on local" in said[0][1] + said[1][1]
    assert sum(out.count("NER keys") for out, _ in said) == 2
    assert set(records(tmp_path)) == {0, 1}


def test_a_killed_grid_goes_on_with_the_cell_it_was_at(overrides: list[str], tmp_path: Path) -> None:
    """Kill -9 in the second cell's capture: it resumes, and its numbers are those of an undisturbed run."""
    arguments = [*slow(overrides, tmp_path), "seed=0,1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        command("run.py", "-m", *arguments), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    spectra = tmp_path / "outputs" / "spectra"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if records(tmp_path) and list(spectra.glob("*.unfinished/*/state.json")):
            break
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    shown = call("status.py", cwd=tmp_path)
    assert "few: 2 cells, 1 done, 1 interrupted" in shown.stdout
    (state,) = spectra.glob("*.unfinished/*/state.json")
    assert json.loads(state.read_text())["progress"]["batches"] >= 1
    done = call("run.py", "-m", *arguments, cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0].startswith("few: 0 of 1 cells done")

    undisturbed = [argument.replace("outputs", "undisturbed") for argument in arguments if "seed" not in argument]
    alone = call("run.py", *undisturbed, "seed=1", cwd=tmp_path, environment=environment)
    assert alone.returncode == 0, alone.stderr
    expected = pd.read_parquet(Path(alone.stdout.splitlines()[-1]).with_name("layers.parquet"))
    found = next(
        path
        for path in (tmp_path / "outputs" / "runs").rglob("record.json")
        if json.loads(path.read_text())["settings"]["seed"] == 1
    )
    pd.testing.assert_frame_equal(pd.read_parquet(found.with_name("layers.parquet")), expected, rtol=1e-12)
