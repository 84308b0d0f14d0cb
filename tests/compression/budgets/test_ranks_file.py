"""Files of ranks: what was written is read, and nothing that does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvcore.compression.allocation import Allocation, untruncated
from kvcore.compression.budgets.ranks_file import read_ranks, write_ranks
from kvcore.model.geometry import LayerKind
from kvcore.schema import SettingError

KV_DIMS = {LayerKind(layer, kind): 8 for layer in range(2) for kind in ("key", "value")}
WATERFILL = Allocation("waterfill", "waterfill 0.5", dict(zip(KV_DIMS, (2, 5, 1, 8), strict=True)), budget=0.5)
GRID = Allocation("grid", "keys 0.5, values 1", dict(zip(KV_DIMS, (4, 8, 4, 8), strict=True)), 0.5, 1.0)

WHOLE = {"strategy": "any", "asked": "any", "key_ratio": None, "value_ratio": None, "budget": None} | {
    "ranks": {"key": [8, 8], "value": [8, 8]}
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ranks.json"
    write_ranks(path, [untruncated(KV_DIMS), WATERFILL, GRID], KV_DIMS, model="tiny", model_revision="abc")
    return path


def test_allocations_come_back_without_the_untruncated_model(path: Path) -> None:
    assert read_ranks(path, KV_DIMS, model_revision="abc") == [
        Allocation("file", "waterfill: waterfill 0.5", WATERFILL.ranks, budget=0.5),
        Allocation("file", "grid: keys 0.5, values 1", GRID.ranks, 0.5, 1.0),
    ]
    content = json.loads(path.read_text())
    assert content["model"] == {"name": "tiny", "revision": "abc"}
    whole, waterfill, _ = content["allocations"]
    assert (whole["cost_ratio"], whole["break_even_tokens"]) == (1, None)
    assert (waterfill["cost_ratio"], waterfill["kept_keys"], waterfill["kept_values"]) == (0.5, 3 / 16, 13 / 16)
    assert waterfill["basis_numbers"] == 8 * (2 + 5 + 1)
    assert waterfill["ranks"] == {"key": [2, 1], "value": [5, 8]}


def test_ranks_of_another_model_are_refused(path: Path) -> None:
    with pytest.raises(SettingError, match="rank_budget.path = .*: holds the ranks of another model: tiny"):
        read_ranks(path, KV_DIMS, model_revision="def")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 99}, "schema version 99, expected 1"),
        ({"allocations": []}, "none of its allocations truncates anything"),
        ({"allocations": [{"ranks": {"key": [2]}}]}, "key ranks of 1 layers, and the model has 2"),
        ({"allocations": [{"ranks": {"key": [2, 9]}}]}, "rank 9 for the keys of layer 1: allowed are 1 to 8"),
        ({"allocations": [{"ranks": {"key": [0, 1]}}]}, "rank 0 for the keys of layer 0"),
        ({"allocations": [{"ranks": {"key": [True, 1]}}]}, "rank True for the keys of layer 0"),
        (
            {"allocations": [WHOLE | {"budget": "half"}]},
            "budget 'half': allowed are numbers above 0, up to 1, and null",
        ),
        ({"allocations": [WHOLE | {"key_ratio": 1.5}]}, "key_ratio 1.5: allowed are"),
        ({"allocations": [WHOLE | {"value_ratio": True}]}, "value_ratio True: allowed are"),
        ({"allocations": None}, "TypeError"),
        ({"model": "tiny"}, "TypeError"),
    ],
)
def test_what_does_not_fit_is_refused(path: Path, change: dict[str, Any], said: str) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SettingError, match="rank_budget.path") as caught:
        read_ranks(path, KV_DIMS, model_revision="abc")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for path in (tmp_path / "text.json", tmp_path / "deep.json", tmp_path / "missing.json", tmp_path):
        with pytest.raises(SettingError, match="rank_budget.path = .*cannot be used as a ranks.json"):
            read_ranks(path, KV_DIMS, model_revision="abc")
