"""Grids on a real Slurm: submitted and left, launched and waited for, interrupted and gone on with."""

import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from conftest import TEXTS, tiny_cell, tiny_overrides
from scripts import call, command
from slurm_cluster import Cluster

from kvcore.pipeline import run_cell

WAIT = ["run.py", "-m", "hydra/launcher=slurm"]
LEAVE = ["submit.py"]
REFUSED = (
    "sbatch: error: invalid partition specified: nowhere\n"
    "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
)


@pytest.fixture
def overrides(tiny_folder: Path, tiny_data: Path) -> list[str]:
    cell = [one for one in tiny_overrides(tiny_folder, tiny_data, Path("out puts")) if "ratios" not in one]
    resources = {"gpus_per_node": "null", "cpus_per_task": "1", "mem_gb": "1", "timeout_min": "30"}
    return [
        *cell,
        "rank_budget=none",
        *(f"hydra.launcher.{name}={value}" for name, value in resources.items()),
    ]


def stand_in_the_way_of(language: str) -> Path:
    """Let the cell of a language fail: a file is where it needs a folder."""
    obstacle = Path("out puts", "runs", "tiny", f"local-{language}")
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()
    return obstacle


def test_submit_and_leave_then_collect(cluster: Cluster, overrides: list[str]) -> None:
    grid = [*overrides, "grid=four", "language=english,german,french,czech"]
    obstacle = stand_in_the_way_of("german")

    submitted = call("submit.py", *grid)
    assert submitted.returncode == 0, submitted.stderr
    assert submitted.stdout.startswith("four: 4 cells, 0 queued before, 4 to be submitted\njob ")
    assert cluster.ask("squeue", "--noheader") != ""  # it has not waited
    assert "four: 4 cells, 4 pending" in (status := call("status.py", "out puts").stdout) or "running" in status
    assert "in Slurm's queue" in status or "done" in status
    cluster.wait_until_empty(seconds=120)
    status = call("status.py", "out puts").stdout
    assert "four: 4 cells, 3 done, 1 failed" in status
    assert "cannot be written to" in " ".join(status.split())

    obstacle.unlink()
    again = call("submit.py", *grid)
    assert "four: 4 cells, 0 queued before, 1 to be submitted" in again.stdout, again.stderr
    twice = call("submit.py", *grid)
    assert "four: 4 cells, 1 queued before, 0 to be submitted" in twice.stdout, twice.stderr
    cluster.wait_until_empty(seconds=60)
    collected = call("collect.py", "out puts")
    assert collected.returncode == 0, collected.stderr
    assert all(name in collected.stdout for name in ("english", "german", "french", "czech"))


def test_launch_and_wait(cluster: Cluster, overrides: list[str]) -> None:
    stand_in_the_way_of("german")
    done = call(*WAIT, *overrides, "language=english,german")
    assert done.returncode == 1
    assert "grid: 2 cells, 1 done, 1 failed" in done.stdout
    assert "Traceback" not in done.stderr
    assert cluster.ask("squeue", "--noheader") == ""


LONG = ["evaluation.max_tokens=500", "capture.batch_tokens=128", "capture.checkpoint_seconds=0.2"]


def write_long_data(path: Path) -> None:
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS) * 300, encoding="utf-8")


@pytest.fixture(scope="module")
def undisturbed(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The layers of a cell that takes seconds, and nobody interrupts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_long_data(folder / "data.jsonl")
    settings = tiny_cell(tiny_folder, folder / "data.jsonl", folder / "outputs", *LONG)
    return pd.read_parquet(run_cell(settings).with_name("layers.parquet"))


@pytest.mark.parametrize("how", [LEAVE, WAIT], ids=["submit and leave", "launch and wait"])
def test_an_interrupted_cell_goes_on(
    cluster: Cluster, overrides: list[str], undisturbed: pd.DataFrame, how: list[str]
) -> None:
    write_long_data(Path("data.jsonl"))
    cell = [*overrides, *LONG]
    launcher = subprocess.Popen(command(*how, *cell), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    cluster.wait(lambda: any(Path("out puts").glob("spectra/*.unfinished/*/*")))
    task = cluster.ask("squeue", "--noheader", "--format=%i").strip()
    cluster.ask("scancel", *(["--batch"] if how is LEAVE else []), "--signal=USR2", task)
    cluster.start_requeued(task)
    assert any(Path("out puts").glob("spectra/*.unfinished/*/*"))
    _, stderr = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, stderr
    cluster.wait_until_empty(seconds=120)
    assert "1 cells, 1 done" in call("status.py", "out puts").stdout
    cluster.wait(lambda: cluster.state(task) == "COMPLETED")

    layers = pd.read_parquet(next(Path("out puts").rglob("layers.parquet")))
    assert (layers["ner"] - undisturbed["ner"]).abs().max() <= 1e-12
    assert (layers["tokens"] == undisturbed["tokens"]).all()


@pytest.mark.parametrize("how", [LEAVE, WAIT], ids=["submit and leave", "launch and wait"])
def test_a_slurm_that_refuses(cluster: Cluster, overrides: list[str], how: list[str]) -> None:
    done = call(*how, *overrides, "hydra.launcher.partition=nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith(REFUSED)
    assert len(done.stderr.splitlines()) <= 3
    assert cluster.ask("squeue", "--noheader") == ""


def test_mistakes_are_a_line_each_and_nothing_is_submitted(overrides: list[str], tmp_path: Path) -> None:
    for mistake, expected in (
        ("hydra/launcher=basic", "hydra/launcher = 'basic': only Slurm is submitted to"),
        ("hydra.launcher.mem_gb=much", "hydra.launcher.mem_gb = 'much': input should be a valid integer"),
        ("+hydra.launcher.gres=gpu:1", "hydra.launcher.gres is no setting: other options of sbatch go into"),
        ("seed=-1", "seed = -1: input should be greater than or equal to 0"),
    ):
        given = overrides if "launcher=" not in mistake else [one for one in overrides if "launcher" not in one]
        done = call(*LEAVE, *given, mistake, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(expected), done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl"}


def test_failures_are_known_until_their_cells_are_accepted(overrides: list[str], tmp_path: Path) -> None:
    """No Slurm, or one that refuses: rerun=failed must find them again."""
    outputs = tmp_path / "outputs"
    grid = [*overrides, f"output_root={outputs}", "language=english,german"]
    cells = [one for one in grid if not one.startswith("hydra.")]
    (outputs / "runs" / "tiny").mkdir(parents=True)
    (outputs / "runs" / "tiny" / "local-german").write_text("in the way of the folder")
    assert call("run.py", "-m", *cells).returncode == 1
    for _ in range(2):
        refused = call("submit.py", *grid, "rerun=failed", environment=os.environ | {"PATH": str(tmp_path)})
        assert refused.returncode == 2
        assert "1 to be submitted" in refused.stdout
        assert "there is no Slurm here" in refused.stderr
    assert "1 done, 1 failed" in call("status.py", str(outputs)).stdout
