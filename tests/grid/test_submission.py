"""Submit and leave, on a real Slurm; the cells are shell commands here, experiments/test_submit.py has real ones."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from slurm_cluster import Cluster, require_slurm, slurm_cluster

from kvcore.grid.submission import Submission, queued, slurm_folder, submissions, submit
from kvcore.schema import SettingsError, SlurmSettings, UserError, parse_cluster

SMALL = SlurmSettings(cpus_per_task=1, mem_gb=1, timeout_min=30)
NOTE_NUMBER = ["sh", "-c", 'echo "$1" >> "$0"; test "$1" != cell=2']


def test_an_array_whose_failures_stop_nobody(cluster: Cluster, tmp_path: Path) -> None:
    grid = tmp_path / 'it\'s 100 % "$HOME" grid.json'
    noted = tmp_path / "no ted's"
    command = [*NOTE_NUMBER, str(noted)]
    setup = ("export GREETING='good day'", "echo $GREETING")
    (submission,) = submit(grid, [0, 1, 2, 3], command, SMALL.model_copy(update={"setup": setup}))
    assert submission.first == 0
    assert submissions(grid) == [submission]
    cluster.wait_until_empty()
    assert sorted(noted.read_text().split()) == ["cell=0", "cell=1", "cell=2", "cell=3"]
    job = submission.job
    assert {path.name for path in slurm_folder(grid).glob("*.log")} == {f"{job}_{task}.log" for task in range(4)}
    assert (slurm_folder(grid) / f"{job}_0.log").read_text() == "good day\n"
    cluster.wait(lambda: cluster.state(f"{job}_2") == "FAILED")  # the accounting learns of it a moment later
    assert [cluster.state(f"{job}_{task}") for task in range(4)] == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]
    assert queued(grid) == {}


def test_an_interrupted_task_is_queued_again_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    grid, begun = tmp_path / "grid.json", tmp_path / "begun"
    cell = (
        "import os, pathlib, sys, time\n"
        "begun = pathlib.Path(sys.argv[1])\n"
        "if begun.exists():\n"
        "    begun.write_text('went on, restart ' + os.environ['SLURM_RESTART_COUNT'])\n"
        "    sys.exit()\n"
        "begun.touch()\n"
        "try:\n"
        "    time.sleep(100)\n"
        "except KeyboardInterrupt:\n"
        "    print('put in order', flush=True)\n"
        "    sys.exit(130)\n"
    )
    (submission,) = submit(grid, [7], ["/usr/bin/env", "python3", "-c", cell, str(begun)], SMALL)
    task = f"{submission.job}_7"
    cluster.wait(begun.exists)
    assert queued(grid) == {7: "running"}
    cluster.ask("scancel", "--batch", "--signal=USR2", task)  # as Slurm does before the time is up
    cluster.wait(lambda: queued(grid).get(7) == "pending: BeginTime")
    cluster.start_requeued(task)
    cluster.wait_until_empty()
    assert begun.read_text() == "went on, restart 1"
    assert "put in order" in (slurm_folder(grid) / f"{task}.log").read_text()


def test_a_task_is_queued_again_only_so_often(cluster: Cluster, tmp_path: Path) -> None:
    grid, begun = tmp_path / "grid.json", tmp_path / "begun"
    never = SMALL.model_copy(update={"max_num_timeout": 0})
    (submission,) = submit(grid, [0], ["sh", "-c", 'touch "$0"; sleep 2', str(begun)], never)
    cluster.wait(begun.exists)
    cluster.ask("scancel", "--batch", "--signal=USR2", f"{submission.job}_0")
    cluster.wait_until_empty()
    log = (slurm_folder(grid) / f"{submission.job}_0.log").read_text()
    assert "queued again 0 times: it is left to its end" in log
    cluster.wait(lambda: cluster.state(f"{submission.job}_0") == "COMPLETED")


def test_more_cells_than_an_array_holds(cluster: Cluster, tmp_path: Path) -> None:
    grid, noted = tmp_path / "grid.json", tmp_path / "noted"
    found = list(submit(grid, [2100, 3, 999, 1000], [*NOTE_NUMBER, str(noted)], SMALL))
    assert [(one.first, one.cells) for one in found] == [(0, [3, 999]), (1000, [1000]), (2000, [2100])]
    assert submissions(grid) == found
    cluster.wait_until_empty()
    assert sorted(noted.read_text().split()) == ["cell=1000", "cell=2100", "cell=3", "cell=999"]


def test_what_is_asked_for_reaches_slurm(cluster: Cluster, tmp_path: Path) -> None:
    asked = SlurmSettings(
        name="my-grid", partition="short", comment="a comment", gpus_per_node=2, cpus_per_task=2, mem_gb=3,
        timeout_min=45, array_parallelism=1, additional_parameters={"nice": 5, "hold": True, "exclusive": False},
    )  # fmt: skip
    grid = tmp_path / "grid.json"
    (submission,) = submit(grid, [0, 1], ["true"], asked)
    shown = cluster.ask("scontrol", "show", "job", submission.job)
    for expected in (
        "JobName=my-grid", "Partition=short", "Comment=a comment", "TresPerNode=gres:gpu:2", "NumCPUs=2", "mem=3G",
        "TimeLimit=00:45:00", "ArrayTaskThrottle=1", "Nice=5", "Requeue=1", f"WorkDir={tmp_path}",
    ):  # fmt: skip
        assert expected in shown, shown
    assert queued(grid) == {0: "pending: JobHeldUser", 1: "pending: JobHeldUser"}
    cluster.ask("scancel", submission.job)
    cluster.wait_until_empty()
    assert queued(grid) == {}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            SlurmSettings(partition="nowhere"),
            "sbatch: error: invalid partition specified: nowhere\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified",
        ),
        (
            SMALL.model_copy(update={"gpus_per_node": 3}),
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        ),
    ],
)
def test_a_slurm_that_refuses_is_quoted(cluster: Cluster, tmp_path: Path, asked: SlurmSettings, says: str) -> None:
    assert cluster.ask("squeue", "--noheader") == ""
    with pytest.raises(UserError) as error:
        list(submit(tmp_path / "grid.json", [0], ["true"], asked))
    assert str(error.value) == says
    assert submissions(tmp_path / "grid.json") == []


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no Slurm here"):
        list(submit(tmp_path / "grid.json", [0], ["true"], SMALL))
    slurm_folder(tmp_path / "other.json").mkdir(parents=True)
    (slurm_folder(tmp_path / "other.json") / "submitted.json").write_text('[{"job": "1", "first": 0, "cells": [0]}]')
    assert submissions(tmp_path / "other.json") == [Submission("1", 0, [0])]
    assert queued(tmp_path / "other.json") == {}


def test_mistakes_in_what_is_asked_for() -> None:
    with pytest.raises(SettingsError) as error:
        parse_cluster({"mem_gb": "much", "timeout_min": 0, "gres": "gpu:1", "additional_parameters": {"nice": 1.5}})
    lines = str(error.value).splitlines()
    assert lines[0] == "hydra.launcher.mem_gb = 'much': input should be a valid integer"
    assert lines[1] == "hydra.launcher.timeout_min = 0: input should be greater than or equal to 1"
    assert lines[-1].startswith("hydra.launcher.gres is no setting: other options of sbatch go into")


def test_nothing_is_left_of_a_cluster() -> None:
    require_slurm()
    with slurm_cluster() as cluster:
        folder = cluster.folder
        job = cluster.ask("sbatch", "--parsable", "--mem=1", "--output=/dev/null", "--wrap=sleep 300").strip()
        cluster.wait(lambda: "R" in cluster.ask("squeue", "--noheader", "--format=%t", f"--jobs={job}"))
    assert not folder.exists()
    deadline = time.monotonic() + 5
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def processes_of(folder: Path) -> list[str]:
    listed = subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in listed if str(folder) in line and int(line.split()[0]) != os.getpid()]


def test_a_damaged_list_of_jobs_is_named(tmp_path: Path) -> None:
    path = slurm_folder(tmp_path / "grid.json") / "submitted.json"
    path.parent.mkdir(parents=True)
    path.write_text("[{")
    with pytest.raises(UserError, match=r"submitted.json cannot be read .*remove it when no job"):
        submissions(tmp_path / "grid.json")
