"""The workspaces: what they show is what runs hold."""

import sys
from typing import Any

import pytest
from conftest import composed

from kvcore.results.tracking.workspace import comparison, failures, save_workspaces
from kvcore.schema import UserError, parse_settings

# wandb-workspaces 0.4 is written for pydantic 1
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")


def sections(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    bank = spec["section"]["panelBankConfig"]["sections"]
    return {section["name"]: [panel["config"] for panel in section["panels"]] for section in bank}


def test_panels_show_what_runs_hold() -> None:
    spec = comparison("team", "kvcore")._model.spec.model_dump(by_alias=True, exclude_none=True)
    shown = sections(spec)
    layers = shown["NER over the layers"]
    assert [panel["metrics"] for panel in layers] == [["layers/ner_key"], ["layers/ner_value"]]
    assert {panel["xAxis"] for panel in layers} == {"layers/layer"}
    assert [panel["xAxis"] for panel in shown["NER against cost"]] == ["summary:ner.key", "summary:ner.value"]
    assert {panel["yAxis"] for panel in shown["NER against cost"]} == {"summary:perplexity.grid_mean_nd_ppl"}
    assert {panel["xAxis"] for panel in shown["Convergence"]} == {"convergence/tokens"}
    (runs,) = spec["section"]["runSets"]
    columns = runs["runFeed"]["columnOrder"]
    assert {"config:model.value.name", "summary:ner.key", "summary:status"} <= set(columns)


def test_failed_cells_are_found_by_their_tag() -> None:
    spec = failures("team", "kvcore")._model.spec.model_dump(by_alias=True, exclude_none=True)
    (runs,) = spec["section"]["runSets"]
    assert "summary:error" in runs["runFeed"]["columnOrder"]
    assert "'tags'" in str(runs["filters"])
    assert "failed" in str(runs["filters"])


def test_without_the_optional_package_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(UserError, match=r"wandb-workspaces is not installed: pip install 'kvcore\[dashboard\]'"):
        save_workspaces(parse_settings(composed("tracker=wandb")).tracker)
