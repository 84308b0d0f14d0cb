"""The mirror in Weights & Biases from the command line: made again, and compared in workspaces."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import tiny_overrides
from scripts import call
from tracker_server import ENTITY, Service, serving


def call_tracked(
    script: str, *arguments: str, cwd: Path, address: str = "http://127.0.0.1:9"
) -> subprocess.CompletedProcess[str]:
    places = {f"WANDB_{name}_DIR": str(cwd / "home") for name in ("DATA", "CACHE", "CONFIG")}
    environment = os.environ | places | {"WANDB_BASE_URL": address, "WANDB_API_KEY": "k" * 40}
    return call(script, *arguments, cwd=cwd, environment=environment)


@pytest.mark.slow
def test_cells_are_mirrored_after_the_fact(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    overrides = tiny_overrides(tiny_folder, tiny_data, tmp_path / "outputs")
    done = call_tracked("run.py", *overrides, "tracker=wandb", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {entry.name for entry in tmp_path.iterdir()} == {"data.jsonl", "outputs"}
    (live,) = (tmp_path / "outputs" / "tracking" / "wandb").glob("offline-run-*")
    assert f"tracker: {live}" in done.stdout.splitlines()

    again = call_tracked("track.py", "outputs", "tracker.project=other", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    (run,) = (tmp_path / "outputs" / "tracking" / "wandb").glob("offline-run-*")  # one cell, one run
    assert again.stdout.splitlines() == [f"tracker: {run}"]
    assert run != live

    unsent = call_tracked("track.py", "outputs", "tracker.mode=online", "tracker.timeout_seconds=1", cwd=tmp_path)
    assert unsent.returncode == 1
    assert "1 run not sent (no answer within tracker.timeout_seconds = 1)" in unsent.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "output_root = 'nowhere': no finished or failed cell under it"),
        (["tracker.mode=on"], "tracker.mode = 'on': input should be 'offline', 'online' or 'disabled'"),
        (
            ["outputs", "tracker.project=a/b"],
            "tracker.project = 'a/b': string should match pattern '^[^/\\\\#?%:]{1,128}$'",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: list[str], line: str) -> None:
    refused = call_tracked("track.py", *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [line]


def test_workspaces_are_saved_and_their_addresses_printed(tmp_path: Path) -> None:
    service = Service()
    with serving(service) as address:
        done = call_tracked("dashboard.py", "tracker.project=mine", cwd=tmp_path, address=address)
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.partition("?")[0] for line in done.stdout.splitlines()] == [f"{address}/{ENTITY}/mine"] * 2
        names = ["kvcore: comparison of cells", "kvcore: failed cells"]
        assert [view["displayName"] for view in service.views] == names
        assert "layers/ner_key" in json.dumps(service.views[0]["spec"])
        service.views_are_refused = True
        forbidden = call_tracked("dashboard.py", cwd=tmp_path, address=address)
        assert (forbidden.returncode, forbidden.stdout) == (2, "")
        (line,) = forbidden.stderr.splitlines()
        assert line.startswith(f"{address}: ")
        assert "permission denied" in line
        service.key_is_wrong = True
        refused = call_tracked("dashboard.py", "tracker.entity=them", cwd=tmp_path, address=address)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "user is not logged in" in line


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    refused = call_tracked("dashboard.py", cwd=tmp_path)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("http://127.0.0.1:9 cannot be reached: ")
