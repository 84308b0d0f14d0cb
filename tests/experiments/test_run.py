"""The command line as a user meets it: exit codes, last lines, one clear line for a mistake."""

import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import TEXTS, tiny_overrides
from scripts import call, command


@pytest.fixture
def overrides(tiny_folder: Path, tmp_path: Path) -> list[str]:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS), encoding="utf-8")
    return tiny_overrides(tiny_folder, data, tmp_path / "outputs")


def test_a_cell_from_the_command_line(overrides: list[str], tmp_path: Path) -> None:
    first = call("run.py", *overrides, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""  # quiet where nobody watches
    path = Path(first.stdout.splitlines()[-1])
    assert path.name == "record.json"
    assert path.is_file()
    assert "NER keys" in first.stdout
    assert str(path.parent / "layers.parquet") in first.stdout.splitlines()
    assert {entry.name for entry in tmp_path.iterdir()} == {"data.jsonl", "outputs"}
    again = call("run.py", *overrides, cwd=tmp_path)
    assert again.returncode == 0
    assert "finished" in again.stdout
    assert again.stdout.splitlines()[-1] == str(path)


def test_composition_is_shown_and_nothing_is_run(tmp_path: Path) -> None:
    shown = call("run.py", "--cfg", "job", "seed=5", cwd=tmp_path)
    assert shown.returncode == 0
    assert "seed: 5" in shown.stdout
    assert "max_tokens" in shown.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_groups(tmp_path: Path) -> None:
    shown = call("run.py", "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "smollm2_135m" in shown.stdout
    assert "rank_budget: energy, file, grid, importance, none, sensitivity, uniform, waterfill" in shown.stdout


@pytest.mark.parametrize(
    ("mistake", "lines"),
    [
        (["model=smollm"], ["model = 'smollm': there is no such option; did you mean smollm2_135m?"]),
        (["dataset.max_exmples=3"], ["dataset.max_exmples is no setting: did you mean dataset.max_examples"]),
        (["+dataset.shuffle=true"], ["dataset.shuffle is no setting"]),
        (["rerun=failed"], ["rerun = 'failed': only for a grid: with -m, or an experiment that sweeps"]),
        (["cell=3"], ["cell = 3: goes with frozen=FILE, and names one of its cells, counted from 0"]),
        (["model=null"], ["every group needs one of its options"]),
        (["rank_budget.key_ratios=0.5"], ["rank_budget.key_ratios = 0.5: input should be a list, such as [1.0, 0.5]"]),
        (["modle=gemma3_270m"], ["modle is no setting: did you mean model"]),
        (
            ["dataset.max_exmples=3", "sed=1", "seed=-1"],
            ["dataset.max_exmples is no setting", "seed = -1: input", "sed is no setting: did you mean seed"],
        ),
        (
            ["dataset=local", "seed=-1"],
            ["dataset.path = None: source local needs it", "seed = -1: input"],
        ),
        (["rank_budget.key_ratios=[1.5]"], ["rank_budget.key_ratios.0 = 1.5: input should be less than or equal to 1"]),
        (["dataset=local", "dataset.path=none.json"], ["dataset.path = 'none.json': there is no such file"]),
        (["seed=${nothing}"], ["Interpolation key 'nothing' not found"]),
        (["seed"], ["Error parsing override 'seed'"]),
    ],
)
def test_mistakes_are_a_line_each_and_exit_code_2(mistake: list[str], lines: list[str], tmp_path: Path) -> None:
    done = call("run.py", *mistake, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == len(lines)
    for found, expected in zip(done.stderr.splitlines(), lines, strict=True):
        assert found.startswith(expected)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_found_later_are_one_line_too(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('[{"text": "a')
    for mistake, expected in (
        ("dataset.max_tokens=100000", "dataset.max_tokens = 100000: the selected examples have"),
        ("dataset.columns.text=body", "dataset.columns.text = 'body': the file's columns are 'text'"),
        (f"dataset.path={tmp_path / 'broken.json'}", "dataset.path = "),
        ("output_root=/proc/kvcore", "output_root = '/proc/kvcore': cannot be written to"),
    ):
        done = call("run.py", *overrides, mistake, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(expected)
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_wrong_hash_of_packaged_weights(tmp_path: Path) -> None:
    done = call("run.py", f"model.sha256={'0' * 64}", cwd=tmp_path)
    assert done.returncode == 2
    assert "have SHA-256 b179c952" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def long_running(overrides: list[str], tmp_path: Path) -> list[str]:
    """Make the capture take many seconds."""
    data = tmp_path / "data.jsonl"
    data.write_text(data.read_text(encoding="utf-8") * 1000, encoding="utf-8")
    return [*overrides, "evaluation.max_tokens=500"]


def start_and_wait_for_settings(overrides: list[str], tmp_path: Path) -> subprocess.Popen[str]:
    # Test runners and shells ignore Ctrl-C for what they start in the background, and what that starts inherits it.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command("run.py", *overrides), cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heeding
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("settings.yaml")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    assert process.poll() is None, process.communicate()
    return process


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stopped_cell_is_visibly_unfinished_and_completes(
    overrides: list[str], tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    overrides = long_running(overrides, tmp_path)
    process = start_and_wait_for_settings([*overrides, "capture.batch_tokens=64"], tmp_path)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in stderr
    folder = next(tmp_path.rglob("settings.yaml")).parent
    assert {path.name for path in folder.iterdir()} == {"settings.yaml"}
    assert not list((tmp_path / "outputs" / "spectra").glob("[!.]*"))

    done = call("run.py", *overrides, "capture.batch_tokens=8192", cwd=tmp_path)  # the same cell, but faster
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]) == folder / "record.json"
    assert (folder / "record.json").is_file()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root, to mount a tiny disk")
def test_a_full_disk_is_said_before_the_long_work(overrides: list[str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a tiny disk is not allowed here")
    try:
        done = call("run.py", *overrides, f"output_root={disk}", cwd=tmp_path)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert done.returncode == 2
    assert "MB free, and this cell may write" in done.stderr
    assert len(done.stderr.splitlines()) == 1
