"""Rank budgets against each other: shares of the uniform one, on the same examples."""

import io
from pathlib import Path

import numpy as np
import pytest
from results_example import cost_tables, write_cell
from rich.console import Console

from kvcore.results.collection import collect
from kvcore.results.comparison import compare_budgets
from kvcore.results.printing.grid import print_comparison, print_transfers
from kvcore.results.transfer import transfers
from kvcore.schema import UserError

TOKENS = [10, 20, 30]
UNIFORM = {1.0: [10.0, 20.0, 30.0], 0.5: [16.0, 32.0, 42.0], 0.25: [22.0, 44.0, 54.0]}
WATERFILL = {1.0: [10.0, 20.0, 30.0], 0.5: [13.0, 23.0, 36.0]}


def test_shares_by_hand(tmp_path: Path) -> None:
    for name, nll in (("uniform", UNIFORM), ("waterfill", WATERFILL)):
        write_cell(tmp_path, "m", "d", rank_budget=name, tables=cost_tables(name, nll, TOKENS))
    found = compare_budgets(collect(tmp_path).cells).set_index(["budget", "strategy"])
    assert list(found.index) == [(0.5, "waterfill"), (0.5, "uniform"), (0.25, "uniform")]
    assert found.loc[(0.5, "waterfill"), "delta_nll"] == pytest.approx(12 / 60)
    assert found.loc[(0.5, "waterfill"), "share"] == pytest.approx(12 / 30)
    assert found.loc[(0.5, "uniform"), "share"] == found.loc[(0.5, "uniform"), "share_low"] == 1
    # Of the three examples alone the shares are 3/6, 3/12 and 6/12: every draw lies between.
    low, high = found.loc[(0.5, "waterfill"), ["share_low", "share_high"]]
    assert 0.25 <= low < 0.4 < high <= 0.5


def test_without_a_uniform_budget_there_is_no_share(tmp_path: Path) -> None:
    write_cell(tmp_path, "m", "d", rank_budget="waterfill", tables=cost_tables("waterfill", WATERFILL, TOKENS))
    assert np.isnan(compare_budgets(collect(tmp_path).cells)["share"]).all()


@pytest.mark.parametrize("converged", [True, False])
def test_ranks_of_spectra_that_have_not_settled_are_marked(tmp_path: Path, converged: bool) -> None:
    tables = cost_tables("uniform", UNIFORM, TOKENS)
    write_cell(tmp_path, "m", "d", rank_budget="uniform", tables=tables, converged=converged)
    write_cell(tmp_path, "m", "d", evaluated_on="e", rank_budget="uniform", tables=tables, converged=converged)
    cells, screen = collect(tmp_path).cells, io.StringIO()
    comparison = compare_budgets(cells)
    assert set(comparison["converged"]) == {converged}
    print_comparison(Console(file=screen, width=100), comparison)
    print_transfers(Console(file=screen, width=100), transfers(cells))
    said = screen.getvalue()
    marked = ("ranks from d, english*;", "\n d*  ", "\n* not converged: fewer than 20 tokens per dimension\n")
    assert [mark in said for mark in marked] == [not converged] * 3


def test_where_uniform_costs_nothing_there_is_no_share(tmp_path: Path) -> None:
    for name in ("uniform", "waterfill"):
        whole = UNIFORM | {0.75: UNIFORM[1.0]}
        write_cell(tmp_path, "m", "d", rank_budget=name, tables=cost_tables(name, whole, TOKENS))
    found = compare_budgets(collect(tmp_path).cells).set_index(["budget", "strategy"])
    assert found.loc[(0.75, "waterfill"), "delta_nll"] == 0
    assert found.loc[0.75, ["share", "share_low", "share_high"]].isna().all(axis=None)
    assert found.loc[(0.5, "waterfill"), "share"] == 1


@pytest.mark.parametrize(("table", "column"), [("perplexity", "kept_keys"), ("likelihoods", "nll")])
def test_tables_of_another_version_are_one_line(tmp_path: Path, table: str, column: str) -> None:
    tables = cost_tables("uniform", UNIFORM, TOKENS)
    tables[table] = tables[table].drop(columns=column)
    write_cell(tmp_path, "m", "d", rank_budget="uniform", tables=tables)
    with pytest.raises(UserError, match=f"{table}.parquet cannot be read .it has no column {column}"):
        compare_budgets(collect(tmp_path).cells)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    grid = cost_tables("grid", {(1.0, 1.0): [1.0], (0.5, 0.5): [2.0]}, [1])
    write_cell(tmp_path / "a", "m", "d", tables=grid)
    with pytest.raises(UserError, match="no finished cell has a rank budget with budgets"):
        compare_budgets(collect(tmp_path / "a").cells)
    for number in range(2):
        tables = cost_tables("waterfill", WATERFILL, TOKENS)
        write_cell(tmp_path / "b", "m", "d", rank_budget="waterfill", tables=tables, id=f"id{number}")
    write_cell(tmp_path / "b", "m", "d", rank_budget="uniform", tables=cost_tables("uniform", UNIFORM, TOKENS))
    with pytest.raises(UserError, match="these cells are of one strategy, data and budget") as raised:
        compare_budgets(collect(tmp_path / "b").cells)
    assert [line.split("/")[-2] for line in str(raised.value).splitlines()[1:]] == ["id0", "id1"]
    write_cell(tmp_path / "c", "m", "d", rank_budget="uniform", tables=cost_tables("uniform", UNIFORM, TOKENS))
    fewer = {budget: nll[:2] for budget, nll in WATERFILL.items()}
    write_cell(tmp_path / "c", "m", "d", rank_budget="waterfill", tables=cost_tables("waterfill", fewer, TOKENS[:2]))
    with pytest.raises(UserError, match="waterfill and uniform were evaluated on different examples or tokens"):
        compare_budgets(collect(tmp_path / "c").cells)
