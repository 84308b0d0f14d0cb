"""What predicts what: rank metrics of spectra against what compressing to them costs, over datasets."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from kvcore.evaluation.intervals import LEVEL, Samples
from kvcore.evaluation.judging.scores import grid_scores
from kvcore.results import figures
from kvcore.results.collection import cell_table
from kvcore.schema import UserError

POOLED = "pooled"
DRAWS = 2000
_SEED = 0
_FEWEST_CELLS = 3
PREDICTORS = ("ner", "ner_energy", "rank_at_energy_0.95", "stable_rank")
KINDS = ("key", "value", "both")
COSTS = {"nd_ppl": "ND-PPL, mean over the grid", "gpt_score": "GPT-score, mean over the grid"}

Correlation = Callable[[Samples, Samples], NDArray[np.float64]]


class Cell:
    """One cell's predictors and costs.

    Attributes:
        model: Name of the model.
        data: Dataset and language.
        predictors: By (metric, kind): the mean over layers, ranks as shares of kv_dim; `both`: of keys and values.
        costs: By name: (1 + DRAWS,) the cost, and that of draws of the cell's examples with replacement.
    """

    def __init__(self, cell: "pd.Series[Any]") -> None:
        """Read the tables of a finished cell with a grid."""
        self.model = str(cell["model"])
        self.data = f"{cell['dataset']}, {cell['language']}"
        tables = {name: cell_table(cell["path"], name) for name in ("layers", "perplexity", "likelihoods")}
        self.predictors = _predictors(tables["layers"])
        self.costs = {"nd_ppl": _nd_ppl(tables["perplexity"], tables["likelihoods"])}
        if cell["judged"]:
            by_prompt = grid_scores(cell_table(cell["path"], "judgements"), cell_table(cell["path"], "scores"))
            if not by_prompt.empty:
                self.costs["gpt_score"] = _gpt_score(by_prompt)


def _predictors(layers: pd.DataFrame) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for metric in PREDICTORS:
        values = layers[metric] if metric.startswith("ner") else layers[metric] / layers["kv_dim"]
        means = values.groupby(layers["kind"]).mean()
        found |= {(metric, kind): float(means[kind]) for kind in ("key", "value")}
        found[metric, "both"] = float(means.mean())
    return found


def _nd_ppl(points: pd.DataFrame, likelihoods: pd.DataFrame) -> Samples:
    """Return (1 + DRAWS,): mean ND-PPL over the grid without (1, 1), of all examples and of draws of them."""
    grid = points[points["strategy"] == "grid"]["point"]
    nll = likelihoods.pivot(index="example", columns="point", values="nll")
    tokens = likelihoods[likelihoods["point"] == 0].set_index("example")["tokens"].reindex(nll.index).to_numpy()
    growth = nll[grid].sub(nll[0], axis=0).to_numpy(dtype=np.float64)
    counts = _draws_of(len(nll))
    with np.errstate(over="ignore"):
        return np.asarray(np.expm1(counts @ growth / (counts @ tokens)[:, None]).mean(1))


def _gpt_score(by_prompt: pd.DataFrame) -> Samples:
    """Return (1 + DRAWS,): mean score over the grid without (1, 1), of all prompts and of draws of them."""
    counts = _draws_of(len(by_prompt))
    sums, judged = by_prompt.sum(axis=1).to_numpy(dtype=np.float64), by_prompt.count(axis=1).to_numpy(dtype=np.float64)
    return np.asarray(counts @ sums / (counts @ judged))


def _draws_of(count: int) -> NDArray[np.float64]:
    """Return (1 + DRAWS, count): how often each of `count` things is in a draw; in the first one, each once."""
    drawn = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), DRAWS)
    return np.vstack([np.ones(count), drawn]).astype(np.float64)


def correlate(cells: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Correlate rank metrics with costs over the cells with a grid, per model and over all models.

    Args:
        cells: From `kvcore.results.collection.collect`.

    Returns:
        The correlations: model (`pooled`: all), cost, metric, kind, cells, and for each of pearson, spearman and
        kendall its value and two 95 % bootstrap intervals: over examples (`_low`, `_high`: the same datasets, other
        examples) and over cells (`_cells_low`, `_cells_high`: other datasets). And what they are of, a row a cell.

    Raises:
        UserError: Fewer than three cells of a model have a grid.
    """
    found = [Cell(cell) for _, cell in cells[cells["rank_budget"] == "grid"].iterrows()]
    groups = {model: [cell for cell in found if cell.model == model] for model in dict.fromkeys(c.model for c in found)}
    if not any(len(group) >= _FEWEST_CELLS for group in groups.values()):
        raise UserError(f"correlations need {_FEWEST_CELLS} finished cells of one model with rank_budget=grid")
    if len(groups) > 1:
        groups[POOLED] = found
    rows = [
        {"model": model, "cost": cost, "metric": metric, "kind": kind, "cells": len(group)}
        | _correlations([cell.predictors[metric, kind] for cell in group], [cell.costs[cost] for cell in group])
        for model, group in groups.items()
        if len(group) >= _FEWEST_CELLS
        for cost in COSTS
        if all(cost in cell.costs for cell in group)
        for metric in PREDICTORS
        for kind in KINDS
    ]
    return pd.DataFrame(rows), pd.DataFrame([_described(cell) for cell in found])


def _described(cell: Cell) -> dict[str, object]:
    low, high = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    costs: dict[str, object] = {}
    for name, drawn in cell.costs.items():
        ends = np.nanquantile(drawn[1:], [low, high])
        costs |= {name: drawn[0], f"{name}_low": ends[0], f"{name}_high": ends[1]}
    predictors = {f"{metric}_{kind}": value for (metric, kind), value in cell.predictors.items()}
    return {"model": cell.model, "data": cell.data, **predictors, **costs}


def _correlations(predictor: Sequence[float], costs: Sequence[Samples]) -> dict[str, float]:
    x, y = np.array(predictor), np.stack(costs, axis=-1)  # (cells,) and (1 + DRAWS, cells)
    chosen = np.random.default_rng(_SEED).integers(0, len(x), (DRAWS, len(x)))
    found: dict[str, float] = {}
    for name, correlation in _CORRELATIONS.items():
        values = correlation(np.broadcast_to(x, y.shape), y)
        over_cells = correlation(x[chosen], y[0][chosen])
        found |= {name: float(values[0])}
        for suffix, drawn in (("", values[1:]), ("_cells", over_cells)):
            numbers = drawn[~np.isnan(drawn)]
            ends = np.quantile(numbers, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(numbers) else (np.nan, np.nan)
            found |= {f"{name}{suffix}_low": float(ends[0]), f"{name}{suffix}_high": float(ends[1])}
    return found


def _pearson(x: Samples, y: Samples) -> NDArray[np.float64]:
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # such draws have no correlation, and are left out
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return np.asarray(stats.pearsonr(x, y, axis=-1).statistic)


def _spearman(x: Samples, y: Samples) -> NDArray[np.float64]:
    return _pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))


def _kendall(x: Samples, y: Samples) -> NDArray[np.float64]:
    return np.asarray(stats.kendalltau(x, y, axis=-1).statistic)


_CORRELATIONS: dict[str, Correlation] = {"pearson": _pearson, "spearman": _spearman, "kendall": _kendall}


def write_correlations(correlations: pd.DataFrame, points: pd.DataFrame, folder: Path) -> list[Path]:
    """Write both tables as CSV and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "correlations.csv", folder / "correlated_cells.csv"]
    for table, path in zip((correlations, points), paths, strict=True):
        table.to_csv(path, index=False)
    return paths


def draw_correlations(points: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw each cost over the normalized effective rank, one point a cell, and return the paths."""
    return [
        path
        for cost, label in COSTS.items()
        if cost in points
        for path in figures.save_figure(figures.cost_against_ner(points, cost, label), folder, f"{cost}_against_ner")
    ]
