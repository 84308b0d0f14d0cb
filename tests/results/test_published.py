"""The published values, under this repository's names, beside measured ones."""

from pathlib import Path

import pytest
from conftest import REPOSITORY
from results_example import write_cell

from kvcore.results.collection import collect
from kvcore.results.published import against_published, published_ner


def test_names_are_those_of_the_configuration() -> None:
    published = published_ner()
    assert len(published) == 168
    assert published.set_index(["dataset", "language", "model", "kind"]).index.is_unique
    for group in ("dataset", "language", "model"):
        shipped = {path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml")}
        assert set(published[group]) <= shipped
    assert set(published["kind"]) == {"key", "value"}


def test_measured_published_and_difference_stand_side_by_side(tmp_path: Path) -> None:
    projection = {"capture": {"point": "projection"}}
    write_cell(tmp_path, "qwen3_4b", "alpaca", ner={"key": 0.43, "value": 0.7}, settings=projection, converged=True)
    write_cell(tmp_path, "qwen3_4b", "medalpaca", settings=projection, status="untrusted")
    write_cell(tmp_path, "qwen3_4b", "codealpaca", settings={"capture": {"point": "rotary"}})
    write_cell(tmp_path, "smollm2_135m", "alpaca", settings=projection)
    found = against_published(collect(tmp_path).cells)
    names = ["dataset", "language", "model", "kind", "measured", "published", "difference", "converged"]
    assert list(found.columns) == names
    assert [list(row) for row in found.to_numpy()] == [
        ["alpaca", "english", "qwen3_4b", "key", 0.43, 0.428, pytest.approx(0.002), True],
        ["alpaca", "english", "qwen3_4b", "value", 0.7, 0.724, pytest.approx(-0.024), True],
    ]
