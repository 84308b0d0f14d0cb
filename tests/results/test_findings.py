"""Findings with prescribed answers: claims that hold, that fail, that cannot be told."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kvcore.results.findings import Finding, findings, left_out
from kvcore.results.published import published_ner

LANGUAGES = ["english", "arabic", "french", "german", "italian", "spanish"]
KV_DIMS = {"a": 64, "b": 128, "c": 256, "d": 512, "e": 1024}


def cell(model: str, dataset: str, language: str, key: float, value: float, **changes: Any) -> dict[str, Any]:
    return {
        "model": model, "dataset": dataset, "language": language, "evaluated_on": dataset,
        "evaluated_language": language, "ner_key": key, "ner_value": value, "kv_dim": KV_DIMS.get(model, 64),
        "status": "finished", "converged": True, "rank_budget": "grid", "surface": "[1.0] x [1.0, 0.5]",
        "grid_mean_nd_ppl": float("nan"), "spectrum_id": f"{model}{dataset}{language}",
    } | changes  # fmt: skip


def grid(
    domain: float,
    language: float,
    models: str = "a",
    value: float = 0.3,
    languages: Sequence[str] = LANGUAGES,
    **changes: Any,
) -> pd.DataFrame:
    """Return cells of five English datasets and six languages, of which one dataset and one language is the origin."""
    rows = []
    for model in models:
        for number in range(5):
            key = 0.5 + domain * number
            rows.append(cell(model, f"d{number}", "english", key, key + value, **changes))
        for number, name in enumerate(languages[1:], start=1):
            key = 0.5 + language * number
            rows.append(cell(model, "d0", name, key, key + value, **changes))
    return pd.DataFrame(rows)


def found(cells: pd.DataFrame) -> dict[str, Finding]:
    names = ["keys", "languages", "capacity", "collapse", "cost"]
    return dict(zip(names, findings(cells), strict=True))


def test_keys_are_below_values_or_not() -> None:
    keys = found(grid(0.01, -0.02))["keys"]
    assert keys.supported is True
    assert keys.statistics == {"difference": pytest.approx(0.3), "low": pytest.approx(0.3), "high": pytest.approx(0.3),
                               "lower": 10, "cells": 10}  # fmt: skip
    assert "in 10 of 10 cells, on average by 0.300 (95 % interval over 10 datasets" in keys.statement
    keys = found(grid(0.01, -0.02, value=-0.1))["keys"]
    assert keys.supported is False
    assert keys.statement.startswith("Not supported here: NER of keys is lower than that of values in 0 of 10 cells")
    keys = found(grid(0.01, -0.02).head(4))["keys"]
    assert keys.supported is None
    assert keys.statement == "Cannot be told from this grid: it takes 5 datasets or languages, and there are 4."


def test_languages_move_ner_more_than_domains_or_not() -> None:
    finding = found(grid(0.001, -0.02))["languages"]
    assert finding.supported is True
    # By hand: domains move keys by 0.001 to 0.004 of 0.5, languages by 0.02 to 0.1; 5 against 4, all larger.
    assert finding.statistics["key_domain_shift"] == pytest.approx(0.005)
    assert finding.statistics["key_language_shift"] == pytest.approx(0.12)
    assert finding.statistics["key_larger"] == 1
    assert finding.statistics["key_p"] == pytest.approx(1 / 126)
    finding = found(grid(-0.02, 0.001))["languages"]
    assert finding.supported is False
    assert finding.statistics["key_larger"] == 0
    assert found(grid(0.01, 0.02).query("language == 'english'"))["languages"].supported is None
    without_origin = grid(0.01, 0.02).query("not (dataset == 'd0' and language == 'english')")
    assert found(without_origin)["languages"].supported is None


def test_a_model_of_another_scale_does_not_decide() -> None:
    cells = pd.concat([grid(0.001, -0.02, models="abc"), grid(0.1, 0.0, models="e")])
    assert found(cells)["languages"].supported is True


@pytest.mark.parametrize(("slope", "supported"), [(-1, True), (1, False)])
def test_larger_caches_have_lower_ner_or_not(slope: int, *, supported: bool) -> None:
    rows = [
        cell(model, "d", "english", 0.5 + 0.05 * slope * number, 0.7 + 0.05 * slope * number)
        for number, model in enumerate(KV_DIMS)
    ]
    finding = found(pd.DataFrame(rows))["capacity"]
    assert finding.supported is supported
    assert finding.statistics["key_spearman"] == pytest.approx(slope)
    expected = 1 / 120 if supported else 1
    assert finding.statistics["key_p"] == pytest.approx(expected, abs=0.004)
    assert found(pd.DataFrame(rows[:3]))["capacity"].supported is None
    apart = [row | {"dataset": f"d{number}"} for number, row in enumerate(rows)]
    told = found(pd.DataFrame(apart))["capacity"]
    assert told.statement == "Cannot be told from this grid: no dataset was measured with all models."


def test_ranks_collapse_in_other_languages_or_not() -> None:
    finding = found(grid(0, -0.05))["collapse"]
    assert finding.supported is True
    assert finding.statistics["key_drop"] == pytest.approx(0.3)
    assert "most in spanish, 50.0 %" in finding.statement
    mixed = grid(0, 0)
    mixed["ner_key"] += np.where(mixed["language"].isin(["arabic", "french", "german"]), 0.1, 0)
    assert found(mixed)["collapse"].supported is False
    assert found(grid(0, -0.05).query("language != 'english'"))["collapse"].supported is None
    assert found(grid(0, -0.05).query("language != 'arabic'"))["collapse"].supported is None


def test_languages_of_some_models_only_do_not_count() -> None:
    """A grid that is not finished yet: the model with the greater losses lacks two languages, arabic the greatest."""
    languages = [*LANGUAGES, "swedish", "turkish"]
    parts = [grid(0.001, -0.02, "a", languages=languages), grid(0.001, -0.04, "b", languages=languages)]
    cells = pd.concat(parts, ignore_index=True)
    unfinished = cells[~((cells["model"] == "a") & cells["language"].isin(["arabic", "spanish"]))]
    whole, part = found(cells)["collapse"].statistics, found(unfinished)["collapse"].statistics
    assert whole["languages"] == 7
    assert whole["key_drop"] == pytest.approx(np.mean([0.06 * number for number in (1, 2, 3, 4, 5, 6, 7)]))
    assert part["languages"] == 5
    assert part["key_drop"] == pytest.approx(np.mean([0.06 * number for number in (2, 3, 4, 6, 7)]))
    few = unfinished[~((unfinished["model"] == "b") & (unfinished["language"] == "french"))]
    assert found(few)["collapse"].supported is None


def test_cost_grows_with_ner_or_not() -> None:
    cells = grid(0.01, -0.02, models="ab")
    cells["grid_mean_nd_ppl"] = cells["ner_key"] * np.where(cells["model"] == "a", 1, 50)
    finding = found(cells)["cost"]
    assert finding.supported is True
    assert finding.statistics["both_spearman"] == pytest.approx(1)
    cells["grid_mean_nd_ppl"] *= -1
    assert found(cells)["cost"].supported is False
    one = cells[cells["model"] == "a"].assign(grid_mean_nd_ppl=np.random.default_rng(0).uniform(size=10))
    finding = found(one)["cost"]
    ner = one["ner_key"] + one["ner_value"]
    expected = stats.spearmanr(ner, one["grid_mean_nd_ppl"])
    assert finding.statistics["both_spearman"] == pytest.approx(expected.statistic)
    assert "(one-sided p = " in finding.statement
    both_sides = 2 * min(finding.statistics["both_p"], 1 - finding.statistics["both_p"])
    assert both_sides == pytest.approx(expected.pvalue, abs=0.05)
    assert found(grid(0.01, -0.02))["cost"].supported is None
    same = found(cells.assign(grid_mean_nd_ppl=1.0))["cost"]
    assert same.statement.startswith("Cannot be told from this grid: all cells have the same NER, or the same of what")
    cells.loc[cells.index[0], "surface"] = "others"
    assert found(cells)["cost"].statement.startswith("Cannot be told from this grid: cost was measured in several ways")


def test_no_finding_rests_on_cells_that_are_untrusted_or_not_converged() -> None:
    cells = grid(0.01, -0.02)
    wrong = [
        cell("a", "bad", "english", 0.9, 0.1, status="untrusted"),
        cell("a", "few", "english", 0.9, 0.1, converged=False),
    ]
    assert findings(pd.concat([cells, pd.DataFrame(wrong)], ignore_index=True)) == findings(cells)
    with_wrong = pd.concat([cells, pd.DataFrame(wrong)], ignore_index=True)
    assert left_out(with_wrong) == "left out of the findings: 1 with a failed gate, 1 not converged, of 12 spectra"
    assert left_out(cells) == ""
    assert all(finding.supported is None for finding in findings(pd.DataFrame(wrong)))


def test_the_published_values_support_what_was_published() -> None:
    kv_dims = {"gemma_2b": 256, "qwen3_4b": 1024, "qwen3_8b": 1024, "mistral_7b": 1024, "phi3_mini": 3072,
               "gemma_7b": 4096, "llama2_7b": 4096}  # fmt: skip
    table = published_ner().pivot(index=["dataset", "language", "model"], columns="kind", values="ner")
    rows = [cell(m, d, lang, ner["key"], ner["value"], kv_dim=kv_dims[m]) for (d, lang, m), ner in table.iterrows()]
    held = found(pd.DataFrame(rows))
    assert [held[name].supported for name in ("keys", "languages", "capacity", "collapse")] == [True] * 4
    assert held["keys"].statistics["lower"] == held["keys"].statistics["cells"] == 84
    assert held["cost"].supported is None
