"""Correlations against scipy's own, cell by cell and draw by draw."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from results_example import cost_tables, write_cell
from rich.console import Console
from scipy import stats

from kvcore.results import correlation
from kvcore.results.collection import collect
from kvcore.results.correlation import COSTS, PREDICTORS, _kendall, correlate, draw_correlations, write_correlations
from kvcore.results.printing.grid import print_correlations
from kvcore.schema import UserError


def layers(generator: np.random.Generator) -> pd.DataFrame:
    rows = []
    for layer in range(2):
        for kind in ("key", "value"):
            rows.append(
                {"layer": layer, "kind": kind, "kv_dim": 8} | {m: generator.uniform(0.1, 1) for m in PREDICTORS}
            )
    return pd.DataFrame(rows)


RESPONSES = {"rank_budget": {"key_ratios": [1.0], "value_ratios": [1.0]}, "evaluation": {"target": "response"}}


def write_grid(root: Path, count: int, model: str = "m") -> dict[str, list[float]]:
    """Write cells with random spectra and costs, and return what is to be correlated."""
    generator = np.random.default_rng(count)
    expected: dict[str, list[float]] = {"ner_key": [], "stable_rank_both": [], "nd_ppl": []}
    for number in range(count):
        table = layers(generator)
        nll = {
            (1.0, 1.0): [2.0, 4.0, 6.0],
            (0.5, 1.0): list(generator.uniform(3, 8, 3)),
            (0.5, 0.5): list(generator.uniform(3, 8, 3)),
        }
        tables = {"layers": table} | cost_tables("grid", nll, [2, 3, 5])
        write_cell(root, model, f"d{number}", tables=tables)
        expected["ner_key"].append(table[table["kind"] == "key"]["ner"].mean())
        expected["stable_rank_both"].append(table["stable_rank"].mean() / 8)
        expected["nd_ppl"].append(np.mean([np.expm1((sum(n) - 12) / 10) for n in list(nll.values())[1:]]))
    return expected


def test_correlations_are_scipys(tmp_path: Path) -> None:
    expected = write_grid(tmp_path, 6)
    found, points = correlate(collect(tmp_path).cells)
    assert list(points["nd_ppl"]) == pytest.approx(expected["nd_ppl"])
    assert (points["nd_ppl_low"] < points["nd_ppl"]).all()
    assert (points["nd_ppl"] < points["nd_ppl_high"]).all()
    assert len(found) == len(PREDICTORS) * 3
    rows = found.set_index(["metric", "kind"])
    for metric, kind in (("ner", "key"), ("stable_rank", "both")):
        x, y, row = expected[f"{metric}_{kind}"], expected["nd_ppl"], rows.loc[(metric, kind)]
        assert row["cells"] == 6
        assert row["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
        assert row["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
        assert row["kendall"] == pytest.approx(stats.kendalltau(x, y).statistic)
        for name in ("pearson", "spearman", "kendall"):
            for over in ("", "_cells"):
                assert -1 <= row[f"{name}{over}_low"] < row[f"{name}{over}_high"] <= 1
            assert row[f"{name}_cells_low"] <= row[name] <= row[f"{name}_cells_high"]


def test_models_are_taken_apart_and_together(tmp_path: Path) -> None:
    write_grid(tmp_path, 4, "one")
    write_grid(tmp_path, 5, "two")
    write_grid(tmp_path, 2, "few")
    found, points = correlate(collect(tmp_path).cells)
    assert found.groupby("model", sort=False)["cells"].first().to_dict() == {"one": 4, "two": 5, "pooled": 11}
    assert len(points) == 11


def test_examples_that_agree_leave_no_doubt_about_the_cost(tmp_path: Path) -> None:
    for number, delta in enumerate((0.1, 0.2, 0.4)):
        nll = {(1.0, 1.0): [1.0, 2.0, 3.0], (0.5, 0.5): [1 + delta, 2 + 2 * delta, 3 + 3 * delta]}
        tables = {"layers": layers(np.random.default_rng(number))} | cost_tables("grid", nll, [1, 2, 3])
        write_cell(tmp_path, "m", f"d{number}", tables=tables, id=f"{number}")
    found, points = correlate(collect(tmp_path).cells)
    assert list(points["nd_ppl"]) == pytest.approx(list(np.expm1([0.1, 0.2, 0.4])))
    assert list(points["nd_ppl_low"]) == pytest.approx(list(points["nd_ppl_high"]))
    assert list(found["pearson_low"]) == pytest.approx(list(found["pearson_high"]), abs=1e-6)


def test_intervals_over_examples_allow_for_what_noise_takes_from_a_correlation() -> None:
    generator, reflected, plain, runs = np.random.default_rng(0), 0, 0, 20
    for run in range(runs):
        x = generator.uniform(0.3, 0.6, 21)
        exact = 1 + 3 * x + generator.normal(0, 0.15, 21)
        examples = exact[:, None] + generator.normal(0, 0.3, (21, 6))
        costs = [correlation._draws_of(6, 100 * run + cell) @ drawn / 6 for cell, drawn in enumerate(examples)]
        y = np.stack(costs, axis=-1)
        values = stats.pearsonr(np.broadcast_to(x, y.shape), y, axis=-1).statistic
        truth = stats.pearsonr(x, exact).statistic
        low, high = correlation._reflected(values)
        reflected += low <= truth <= high
        low, high = np.quantile(values[1:], [0.025, 0.975])
        plain += low <= truth <= high
    assert reflected >= 0.5 * runs > plain


def test_cells_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_grid(tmp_path / "twice", 3)
    nll = {(1.0, 1.0): [2.0, 4.0, 6.0], (0.5, 1.0): [3.0, 5.0, 7.0], (0.5, 0.5): [4.0, 6.0, 8.0]}
    tables = {"layers": layers(np.random.default_rng(9))} | cost_tables("grid", nll, [2, 3, 5])
    write_cell(tmp_path / "twice", "m", "d0", tables=tables, id="ff", spectrum_id="other")
    with pytest.raises(UserError, match="these cells are of one dataset, which would count more than once"):
        correlate(collect(tmp_path / "twice").cells)
    write_grid(tmp_path / "grids", 3)
    tables = {"layers": layers(np.random.default_rng(9))} | cost_tables("grid", dict(list(nll.items())[:2]), [2, 3, 5])
    write_cell(tmp_path / "grids", "m", "d9", tables=tables, id="ff", settings=RESPONSES)
    with pytest.raises(
        UserError, match="costs that were measured in several ways cannot be compared: .*target=response"
    ):
        correlate(collect(tmp_path / "grids").cells)
    write_grid(tmp_path / "gates", 3)
    write_cell(tmp_path / "gates", "m", "d9", tables=tables, id="ff", status="untrusted")
    write_cell(tmp_path / "gates", "m", "d0", evaluated_on="d9", tables=tables, id="ee", spectrum_id="other")
    assert len(correlate(collect(tmp_path / "gates").cells)[1]) == 3


def test_tables_of_another_version_are_one_line(tmp_path: Path) -> None:
    nll = {(1.0, 1.0): [2.0, 4.0], (0.5, 0.5): [3.0, 5.0]}
    tables = {"layers": layers(np.random.default_rng(0)).drop(columns="ner_energy")} | cost_tables("grid", nll, [2, 3])
    write_cell(tmp_path, "m", "d", tables=tables)
    with pytest.raises(UserError, match=r"layers.parquet cannot be read .it has no column ner_energy"):
        correlate(collect(tmp_path).cells)


def test_too_few_cells_are_refused(tmp_path: Path) -> None:
    write_grid(tmp_path, 2)
    with pytest.raises(UserError, match="correlations need 3 finished cells of one model with rank_budget=grid"):
        correlate(collect(tmp_path).cells)


def test_tables_and_figures_are_written(tmp_path: Path) -> None:
    write_grid(tmp_path, 4)
    found, points = correlate(collect(tmp_path).cells)
    paths = write_correlations(found, points, tmp_path / "out") + draw_correlations(points, tmp_path / "out")
    assert [path.name for path in paths] == [
        "correlations.csv", "correlated_cells.csv", "nd_ppl_against_ner.png", "nd_ppl_against_ner.pdf",
    ]  # fmt: skip
    assert len(pd.read_csv(paths[0])) == len(found)
    assert set(COSTS) >= {"nd_ppl"}


def test_every_correlation_is_printed_with_its_interval_whatever_the_width(tmp_path: Path) -> None:
    write_grid(tmp_path, 4)
    found, points = correlate(collect(tmp_path).cells)
    assert not points["converged"].any()
    screen = io.StringIO()
    print_correlations(Console(file=screen, width=40), found)
    assert "; 4 of them not converged: fewer than 20 tokens per dimension" in " ".join(screen.getvalue().split())
    row = found.iloc[0]
    line = next(line for line in screen.getvalue().splitlines() if line.split()[:2] == ["NER", "K"])
    for name in ("pearson", "spearman", "kendall"):
        assert f"{row[name]:.2f} ({row[f'{name}_cells_low']:.2f}, {row[f'{name}_cells_high']:.2f})" in line


def test_kendalls_tau_is_scipys_with_ties_and_unknown_values() -> None:
    draws = np.random.default_rng(0)
    x, y = draws.integers(0, 4, (50, 9)).astype(float), draws.normal(size=(50, 9))
    y[3, 2], y[4, 5], x[5] = np.nan, np.inf, 1.0
    expected = [stats.kendalltau(one, other).statistic for one, other in zip(x, y, strict=True)]
    np.testing.assert_allclose(_kendall(x, y), expected, atol=1e-14)
    assert np.isnan(expected[3])
    assert np.isnan(expected[5])
    assert not np.isnan(expected[4])
