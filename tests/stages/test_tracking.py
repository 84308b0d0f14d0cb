"""Real cells with a tracker: mirrored when they end, and never at their expense."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_cell
from rich.console import Console

from kvcore.pipeline import run_cell
from kvcore.schema import GateError, Settings
from kvcore.stages import checking


@pytest.fixture
def settings(tiny_folder: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home" / name))
    monkeypatch.chdir(tmp_path)
    return tiny_cell(tiny_folder, tiny_data, tmp_path / "outputs", "tracker=wandb", "grid=mine")


def seen(outputs: Path) -> dict[str, Any]:
    (run,) = (outputs / "tracking" / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def test_a_finished_cell_is_a_run_with_its_numbers(settings: Settings, tmp_path: Path) -> None:
    screen = io.StringIO()
    path = run_cell(settings, console=Console(file=screen, width=80))
    record, run = json.loads(path.read_text()), seen(tmp_path / "outputs")
    assert run["run_id"] == record["id"]
    assert run["exit_code"] == 0
    for name in ("ner", "perplexity", "gates", "tokens", "status", "spectrum_id"):
        assert run["summary"][name] == record[name]
    assert run["config"]["grid"] == "mine"
    assert {"tables/layers", "tables/perplexity", "figures/layerwise_ner", "figures/perplexity_heatmap"} <= set(
        run["summary"]
    )
    assert f"tracker: {Path(run['file']).parent}" in screen.getvalue().splitlines()
    assert not (tmp_path / "wandb").exists()


def test_a_failed_cell_is_a_failed_run(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise GateError("gate token_count: value 3, limit 0")

    monkeypatch.setattr(checking, "check_token_count", fail)
    with pytest.raises(GateError, match="token_count"):
        run_cell(settings)
    run = seen(tmp_path / "outputs")
    assert run["exit_code"] == 1
    assert (run["summary"]["status"], run["summary"]["stage"]) == ("failed", "gates")
    assert run["summary"]["error"] == "gate token_count: value 3, limit 0"
    assert "tables/layers" in run["summary"]  # what was measured before


def test_an_interrupted_cell_leaves_no_run(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "check_token_count", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_cell(settings)
    assert not (tmp_path / "outputs" / "tracking").exists()


def test_a_cell_does_not_fail_because_tracking_did(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    tracker = settings.tracker.model_copy(update={"folder": str(tmp_path / "taken")})
    screen = io.StringIO()
    path = run_cell(settings.model_copy(update={"tracker": tracker}), console=Console(file=screen, width=80))
    assert json.loads(path.read_text())["status"] == "finished"
    assert [line for line in screen.getvalue().splitlines() if line.startswith("tracker: not mirrored: ")]
