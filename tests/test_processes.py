"""Several real processes at one cell: the same numbers, and a clean end if one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY, TEXTS, tiny_overrides
from scripts import RUN

# A process that dies by itself in the middle of capture, as one killed for its memory would.
DYING = """
import os, runpy, sys
sys.argv = sys.argv[1:]
if os.environ["RANK"] == "1":
    from kvcore.spectrum import measurement
    original = measurement._Work._run
    def run(self, *arguments):
        if self.accumulation.batches > 36:
            os.kill(os.getpid(), 9)
        original(self, *arguments)
    measurement._Work._run = run
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# A process that is some seconds later than the other, as on a slow shared disk.
LATE = """
import os, runpy, sys, time
sys.argv = sys.argv[1:]
if os.environ["RANK"] == "1":
    from kvcore.grid import frozen
    original = frozen.freeze
    def freeze(cells):
        time.sleep(3)
        return original(cells)
    frozen.freeze = freeze
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def written(tiny_folder: Path, folder: Path) -> list[str]:
    """Write the data to a folder, and return the overrides of a cell on it."""
    texts = [text[: 5 + index % 40] for index in range(12) for text in TEXTS]
    (folder / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [*tiny_overrides(tiny_folder, folder / "data.jsonl", folder / "outputs"), "capture.batch_tokens=30"]


@pytest.fixture
def overrides(tiny_folder: Path, tmp_path: Path) -> list[str]:
    return written(tiny_folder, tmp_path)


def torchrun(count: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=170)


def tables(path: Path) -> list[pd.DataFrame]:
    return [pd.read_parquet(path.parent / f"{name}.parquet") for name in ("layers", "convergence", "perplexity")]


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[pd.DataFrame]:
    """Tables of one undisturbed process with as many threads."""
    folder = tmp_path_factory.mktemp("alone")
    done = torchrun(1, RUN, *written(tiny_folder, folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    return tables(Path(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_gives_the_same_numbers(
    tmp_path: Path, overrides: list[str], alone: list[pd.DataFrame], count: int
) -> None:
    """Three cells one after another, the last of which is compared."""
    shared = torchrun(count, RUN, "-m", *overrides, "seed=2,1,0", cwd=tmp_path)
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count("NER keys") == 3
    path = Path([line for line in shared.stdout.splitlines() if line.endswith("record.json")][-1])
    for found, expected in zip(tables(path), alone, strict=True):
        pd.testing.assert_frame_equal(found, expected, rtol=1e-10)
    assert not list((tmp_path / "outputs" / "spectra").glob("*.unfinished"))


def test_a_process_that_dies_ends_the_cell_which_is_then_gone_on_with(
    tmp_path: Path, overrides: list[str], alone: list[pd.DataFrame]
) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    overrides = [*overrides, "capture.checkpoint_seconds=0"]
    failed = torchrun(2, str(script), RUN, *overrides, cwd=tmp_path)
    assert failed.returncode != 0
    assert not list((tmp_path / "outputs").rglob("record.json"))
    (kept,) = (tmp_path / "outputs" / "spectra").glob("*.unfinished")
    batches = {json.loads(state.read_text())["progress"]["batches"] for state in kept.rglob("state.json")}
    assert batches == {32}
    resumed = torchrun(2, RUN, *overrides, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    path = Path(resumed.stdout.splitlines()[-1])
    for found, expected in zip(tables(path), alone, strict=True):
        pd.testing.assert_frame_equal(found, expected, rtol=1e-10)


def test_a_mistake_of_the_user_is_said_once(tmp_path: Path, overrides: list[str]) -> None:
    failed = torchrun(2, RUN, *overrides, "dataset.max_tokens=10000000", cwd=tmp_path)
    assert failed.returncode != 0
    assert "dataset.max_tokens = 10000000: the selected examples have" in failed.stderr
    assert "SettingError" not in failed.stderr  # torchrun has a traceback of its own


def test_a_killed_capture_is_gone_on_with(tmp_path: Path, overrides: list[str], alone: list[pd.DataFrame]) -> None:
    """Kill -9 of a real run in the middle of capture, then the same command again."""
    overrides = [*overrides, "capture.checkpoint_seconds=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, RUN, *overrides]
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    spectra = tmp_path / "outputs" / "spectra"
    deadline = time.monotonic() + 60
    while not list(spectra.glob("*.unfinished/*/state.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.wait()
    (state,) = spectra.glob("*.unfinished/*/state.json")
    assert json.loads(state.read_text())["progress"]["batches"] >= 1
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    for found, expected in zip(tables(path), alone, strict=True):
        pd.testing.assert_frame_equal(found, expected, rtol=1e-12)


def test_all_processes_run_the_cells_that_have_failed(tmp_path: Path, overrides: list[str]) -> None:
    """One chooses them for all: whoever launches a grid forgets the failures by which the next would choose."""
    grid = [*overrides, f"dataset.path={tmp_path / 'data.jsonl'},{tmp_path / 'later.jsonl'}", "-m"]
    alone = subprocess.run([sys.executable, RUN, *grid], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert alone.returncode == 1
    assert "1 done, 1 failed" in alone.stdout
    (tmp_path / "later.jsonl").write_text(json.dumps({"text": TEXTS[0] * 9}) + "\n")
    script = tmp_path / "late.py"
    script.write_text(LATE)
    mended = torchrun(2, str(script), RUN, *grid, "rerun=failed", cwd=tmp_path)
    assert mended.returncode == 0, mended.stderr
    assert "2 cells, 2 done" in mended.stdout
