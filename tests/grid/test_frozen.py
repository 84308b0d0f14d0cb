"""A grid as a file."""

import json
from pathlib import Path

import pytest
from conftest import composed, packaged_settings

from kvcore.grid.frozen import freeze, read_frozen
from kvcore.schema import SettingError, Settings, parse_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return parse_settings(composed("grid=few", f"output_root='{tmp_path / 'out puts'}'"))


def test_each_cell_once_and_models_together(settings: Settings) -> None:
    gemma = packaged_settings("gemma3_270m")
    cells = [settings, settings.model_copy(update={"model": gemma}), settings.model_copy(update={"seed": 1}), settings]
    frozen = freeze(cells)
    assert [cell.names["model"] for cell in frozen.cells] == ["smollm2_135m", "smollm2_135m", "gemma3_270m"]
    assert [cell.settings["seed"] for cell in frozen.cells] == [0, 1, 0]


def test_it_comes_back_as_it_was(settings: Settings) -> None:
    launched = freeze([settings, settings.model_copy(update={"seed": 1})]).launch([1])
    assert launched.path.name.startswith("few-")
    assert read_frozen(launched.path) == launched
    assert read_frozen(launched.path).settings(0) == settings
    assert launched.settings(1).seed == 1


def test_where_it_is_written_does_not_make_another_cell(settings: Settings, tmp_path: Path) -> None:
    key = freeze([settings]).cells[0].key
    for changed, same in (({"output_root": str(tmp_path)}, True), ({"grid": "other"}, True), ({"seed": 3}, False)):
        assert (freeze([settings.model_copy(update=changed)]).cells[0].key == key) is same


def test_cells_of_two_places_are_refused(settings: Settings) -> None:
    with pytest.raises(SettingError, match="^output_root = 'elsewhere': one for all cells of a grid"):
        freeze([settings, settings.model_copy(update={"output_root": "elsewhere"})])


def test_a_cell_that_is_not_there(settings: Settings) -> None:
    with pytest.raises(SettingError, match="^cell = 1: .* has 1 cells, counted from 0"):
        freeze([settings]).settings(1)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 7}', '{"schema_version": 1, "cells": [1]}'])
def test_a_file_that_is_no_grid(tmp_path: Path, content: str) -> None:
    path = tmp_path / "grid.json"
    path.write_text(content)
    with pytest.raises(SettingError, match=r"^frozen = .*no grid that can be read"):
        read_frozen(path)


def test_nothing_of_it_can_be_executed(settings: Settings) -> None:
    launched = freeze([settings]).launch([0])
    assert json.loads(launched.path.read_text(encoding="utf-8"))["cells"][0]["settings"]["model"]["name"]
