"""Cells with every kind of rank budget, and budgets that cannot be met."""

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import composed, tiny_overrides

from kvcore.pipeline import run_cell
from kvcore.schema import SettingError, Settings, parse_settings


def cell(folder: Path, data: Path, *budget: str) -> Settings:
    overrides = tiny_overrides(folder, data, data.parent / "outputs")
    return parse_settings(composed(*(o for o in overrides if not o.startswith("rank_budget")), *budget))


@pytest.mark.parametrize("option", ["uniform", "energy", "waterfill", "importance", "sensitivity"])
def test_every_budget_allocates_measures_and_can_be_read_again(tiny_folder: Path, tiny_data: Path, option: str) -> None:
    path = run_cell(cell(tiny_folder, tiny_data, f"rank_budget={option}", "rank_budget.budgets=[0.5,0.25]"))
    surface = pd.read_parquet(path.parent / "perplexity.parquet")
    assert list(surface["budget"]) == [1.0, 0.5, 0.25]
    assert (surface["cost_ratio"] <= surface["budget"]).all()
    assert surface["cost_ratio"].iloc[2] > 0.2
    assert all(set(surface["strategy"]) == {"none", name} for name in surface["strategy"].iloc[1:])
    assert (path.parent / "figures" / "allocation.png").is_file()

    written = path.with_name("ranks.json")
    ranks = json.loads(written.read_text())["allocations"]
    kept = [sum(sum(listed) for listed in entry["ranks"].values()) / 96 for entry in ranks]
    assert kept == list(surface["cost_ratio"])
    reread = run_cell(
        cell(tiny_folder, tiny_data, "rank_budget=file", f"rank_budget.path={path.parent / 'ranks.json'}")
    )
    assert reread != path
    assert list(pd.read_parquet(reread.parent / "perplexity.parquet")["nll"]) == list(surface["nll"])


def test_a_share_of_the_energy_is_not_named_like_a_budget(tiny_folder: Path, tiny_data: Path) -> None:
    shares = ["rank_budget=energy", "rank_budget.shares=[0.9]", "rank_budget.budgets=[]"]
    surface = pd.read_parquet(run_cell(cell(tiny_folder, tiny_data, *shares)).with_name("perplexity.parquet"))
    assert list(surface["asked"]) == ["untruncated", "energy share 0.9"]
    assert surface["budget"].isna()[1]


def test_a_budget_that_buys_nothing_is_refused_before_the_long_work(tiny_folder: Path, tiny_data: Path) -> None:
    for option in ("uniform", "waterfill", "importance", "sensitivity", "energy"):
        with pytest.raises(SettingError, match=r"rank_budget.budgets = 0.01: one rank"):
            run_cell(cell(tiny_folder, tiny_data, f"rank_budget={option}", "rank_budget.budgets=[0.5,0.01]"))
    for mistake, said in (
        (
            ["rank_budget=waterfill", "rank_budget.floor=0.6"],
            "rank_budget.floor = 0.6: takes more than the budget of 0.5",
        ),
        (["rank_budget=file", f"rank_budget.path={tiny_data}"], "rank_budget.path = .*cannot be used as a ranks.json"),
    ):
        with pytest.raises(SettingError, match=said):
            run_cell(cell(tiny_folder, tiny_data, *mistake))
    assert not list((tiny_data.parent / "outputs" / "spectra").iterdir())
