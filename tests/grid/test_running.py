"""One cell of a grid, whose failure does not stop the others."""

from pathlib import Path

import pytest
from conftest import composed

from kvcore.grid.frozen import freeze
from kvcore.grid.launching import launched
from kvcore.grid.running import run_frozen_cell
from kvcore.preparation import ModelLoader
from kvcore.processes import ALONE
from kvcore.schema import LaunchSettings, parse_settings


def test_a_failure_that_cannot_be_written_down_stops_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a full disk."""
    missing = tmp_path / "missing.jsonl"
    cell = parse_settings(composed(f"output_root={tmp_path}", "dataset=local", f"dataset.path={missing}"))
    grid = launched(freeze([cell]), "missing")
    (tmp_path / "grids" / "cells" / f"{grid.cells[0].key}.json").mkdir()
    launch = LaunchSettings(frozen=str(grid.path), cell=0)
    assert run_frozen_cell(launch, console=None, loader=ModelLoader(), processes=ALONE) is False
    _, failed, unwritten = capsys.readouterr().err.splitlines()
    assert failed.startswith("failed: ")
    assert str(missing) in failed
    assert unwritten.startswith("no word of this could be left: ")
