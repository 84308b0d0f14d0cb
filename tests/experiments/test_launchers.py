"""Launchers that need no cluster, and those that are not there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TEXTS, tiny_overrides
from scripts import RUN, command

WITHOUT_PLUGINS = """
import runpy, sys
sys.modules["hydra_plugins"] = None
del sys.argv[0]
runpy.run_path(sys.argv[0], {}, "__main__")
"""


def start(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    line = command("run.py", "-m", *arguments)
    return subprocess.Popen(line, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_several_cells_at_a_time_on_one_machine(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    cells = [*tiny_overrides(tiny_folder, tiny_data, Path("outputs")), "dataset.max_tokens=60,100000"]
    process = start("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *cells, cwd=tmp_path)
    stdout, stderr = process.communicate(timeout=150)
    assert process.returncode == 1
    assert "grid: 2 cells, 1 done, 1 failed" in stdout
    assert "Traceback" not in stderr


def test_a_killed_job_is_told_and_its_cell_is_known_to_be_interrupted(tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS) * 1000, encoding="utf-8")
    cell = [*tiny_overrides(tiny_folder, data, Path("outputs")), "evaluation.max_tokens=500", "capture.batch_tokens=64"]
    process = start("hydra/launcher=submitit_local", *cell, cwd=tmp_path)
    deadline = time.monotonic() + 100
    while not list(tmp_path.rglob("settings.yaml")) and time.monotonic() < deadline:
        time.sleep(0.1)
    (job,) = (int(folder.name) for folder in (tmp_path / "outputs" / ".submitit").iterdir() if folder.name.isdigit())
    task = subprocess.run(["ps", "--ppid", str(job), "-o", "pid="], capture_output=True, text=True, check=True).stdout
    os.kill(int(task.split()[-1]), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a job was lost: " in stderr
    assert "Traceback" not in stderr
    assert "grid: 1 cells, 1 interrupted" in stdout


@pytest.mark.parametrize(
    ("launcher", "says"),
    [
        ("joblib", "hydra/launcher = 'joblib': needs hydra-joblib-launcher; install kvcore with its extra"),
        ("slurm", "hydra/launcher = 'slurm': needs hydra-submitit-launcher; install kvcore with its extra"),
        ("submitit_local", "hydra/launcher = 'submitit_local': needs hydra-submitit-launcher; install kvcore"),
        ("slrum", "hydra/launcher = 'slrum': there is no such option; did you mean slurm?"),
    ],
)
def test_a_launcher_that_is_not_there(launcher: str, says: str, tiny_folder: Path, tiny_data: Path) -> None:
    cell = tiny_overrides(tiny_folder, tiny_data, Path("outputs"))
    command = [sys.executable, "-c", WITHOUT_PLUGINS, RUN, "-m", f"hydra/launcher={launcher}", *cell]
    done = subprocess.run(command, cwd=tiny_data.parent, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.startswith(says), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_mistake_in_what_slurm_is_asked_for_is_one_line(tmp_path: Path) -> None:
    process = start("hydra/launcher=slurm", "hydra.launcher.mem_gb=much", "seed=0,1", cwd=tmp_path)
    stdout, stderr = process.communicate(timeout=100)
    assert (process.returncode, stdout) == (2, "")
    assert stderr.splitlines() == ["hydra.launcher.mem_gb = 'much': input should be a valid integer"]
    assert list(tmp_path.iterdir()) == []
