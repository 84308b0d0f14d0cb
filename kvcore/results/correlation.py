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
from kvcore.results.collection import cell_table, on_own_data, trusted
from kvcore.schema import UserError

POOLED = "pooled"
DRAWS = 2000
_SEED = 0
_FEWEST_CELLS = 3
_CLOSEST_TO_ONE = 1 - 1e-9  # where Fisher's scale would be infinite
PREDICTORS = ("ner", "ner_energy", "rank_at_energy_0.95", "stable_rank")
KINDS = ("key", "value", "both")
COSTS = {"nd_ppl": "ND-PPL, mean over the grid", "gpt_score": "GPT-score, mean over the grid"}
_COLUMNS = {
    "layers": ["kind", "kv_dim", *PREDICTORS],
    "perplexity": ["point", "strategy", "key_ratio", "value_ratio"],
    "likelihoods": ["point", "example", "tokens", "nll"],
}

Correlation = Callable[[Samples, Samples], NDArray[np.float64]]


class Cell:
    """One cell's predictors and costs.

    Attributes:
        model: Name of the model.
        data: Dataset and language.
        converged: Whether its spectra have settled.
        predictors: By (metric, kind): the mean over layers, ranks as shares of kv_dim; `both`: of keys and values.
        surface: What its costs are of.
        costs: By name: (1 + DRAWS,) the cost, and that of draws of the cell's examples with replacement.
    """

    def __init__(self, cell: "pd.Series[Any]") -> None:
        """Read the tables of a finished cell with a grid."""
        self.model = str(cell["model"])
        self.data = f"{cell['dataset']}, {cell['language']}"
        self.converged = bool(cell["converged"])
        tables = {name: cell_table(cell["path"], name, *columns) for name, columns in _COLUMNS.items()}
        self.predictors = _predictors(tables["layers"])
        self.surface = str(cell["surface"])
        stream = int(str(cell["id"])[:8], 16)  # draws of one cell tell nothing of those of another
        self.costs = {"nd_ppl": _nd_ppl(tables["perplexity"], tables["likelihoods"], stream)}
        if cell["judged"]:
            by_prompt = grid_scores(cell_table(cell["path"], "judgements"), cell_table(cell["path"], "scores"))
            if not by_prompt.empty:
                self.costs["gpt_score"] = _gpt_score(by_prompt, stream)


def _predictors(layers: pd.DataFrame) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for metric in PREDICTORS:
        values = layers[metric] if metric.startswith("ner") else layers[metric] / layers["kv_dim"]
        means = values.groupby(layers["kind"]).mean()
        found |= {(metric, kind): float(means[kind]) for kind in ("key", "value")}
        found[metric, "both"] = float(means.mean())
    return found


def _nd_ppl(points: pd.DataFrame, likelihoods: pd.DataFrame, stream: int) -> Samples:
    """Return (1 + DRAWS,): mean ND-PPL over the grid without (1, 1), of all examples and of draws of them."""
    grid = points[points["strategy"] == "grid"]["point"]
    nll = likelihoods.pivot(index="example", columns="point", values="nll")
    tokens = likelihoods[likelihoods["point"] == 0].set_index("example")["tokens"].reindex(nll.index).to_numpy()
    growth = nll[grid].sub(nll[0], axis=0).to_numpy(dtype=np.float64)
    counts = _draws_of(len(nll), stream)
    with np.errstate(over="ignore"):
        return np.asarray(np.expm1(counts @ growth / (counts @ tokens)[:, None]).mean(1))


def _gpt_score(by_prompt: pd.DataFrame, stream: int) -> Samples:
    """Return (1 + DRAWS,): mean score over the grid without (1, 1), of all prompts and of draws of them."""
    counts = _draws_of(len(by_prompt), stream)
    sums, judged = by_prompt.sum(axis=1).to_numpy(dtype=np.float64), by_prompt.count(axis=1).to_numpy(dtype=np.float64)
    return np.asarray(counts @ sums / (counts @ judged))


def _draws_of(count: int, stream: int) -> NDArray[np.float64]:
    """Return (1 + DRAWS, count): how often each of `count` things is in a draw; in the first one, each once."""
    drawn = np.random.default_rng([_SEED, stream]).multinomial(count, np.full(count, 1 / count), DRAWS)
    return np.vstack([np.ones(count), drawn]).astype(np.float64)


def correlate(cells: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Correlate rank metrics with costs over the cells with a grid, per model and over all models.

    Args:
        cells: From `kvcore.results.collection.collect`; those whose gates failed, or that were evaluated on other data
            than their own, are left out.

    Returns:
        The correlations: model (`pooled`: all), cost, metric, kind, cells, converged (how many of these are), and for
        each of pearson, spearman and kendall its value and two 95 % bootstrap intervals: over examples (`_low`,
        `_high`: the same datasets, other examples) and over cells (`_cells_low`, `_cells_high`: other datasets). And
        what they are of, a row a cell.

    Raises:
        UserError: Fewer than three cells of a model have a grid, two are of one dataset, or their costs were
                measured in several ways.
    """
    found = [Cell(cell) for _, cell in _one_a_dataset(trusted(cells)).iterrows()]
    if len(ways := sorted({cell.surface for cell in found})) > 1:
        raise UserError(f"costs that were measured in several ways cannot be compared: {'; '.join(ways)}")
    groups = {model: [cell for cell in found if cell.model == model] for model in dict.fromkeys(c.model for c in found)}
    if not any(len(group) >= _FEWEST_CELLS for group in groups.values()):
        raise UserError(f"correlations need {_FEWEST_CELLS} finished cells of one model with rank_budget=grid")
    if len(groups) > 1:
        groups[POOLED] = found
    rows = [
        {"model": model, "cost": cost, "metric": metric, "kind": kind}
        | {"cells": len(having), "converged": sum(cell.converged for cell in having)}
        | _correlations([cell.predictors[metric, kind] for cell in having], [cell.costs[cost] for cell in having])
        for model, group in groups.items()
        for cost in COSTS
        if len(having := [cell for cell in group if cost in cell.costs]) >= _FEWEST_CELLS
        for metric in PREDICTORS
        for kind in KINDS
    ]
    return pd.DataFrame(rows), pd.DataFrame([_described(cell) for cell in found])


def _one_a_dataset(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells with a grid; of a judged and an unjudged one with the same spectra, the judged one.

    A cell that was evaluated on other data than its own says nothing of what its NER predicts, and is left out.

    Raises:
        UserError: Other cells are of one dataset.
    """
    data = ["model", "dataset", "language"]
    grids = cells[on_own_data(cells) & (cells["rank_budget"] == "grid")]
    grids = grids.sort_values("judged", ascending=False, kind="stable")
    grids = grids.drop_duplicates([*data, "spectrum_id"]).sort_index()
    twice = grids[grids.duplicated(data, keep=False)]
    if len(twice):
        raise UserError(
            "these cells are of one dataset, which would count more than once:\n" + "\n".join(twice["path"])
        )
    return grids


def _described(cell: Cell) -> dict[str, object]:
    low, high = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    costs: dict[str, object] = {}
    for name, drawn in cell.costs.items():
        ends = np.nanquantile(drawn[1:], [low, high])
        costs |= {name: drawn[0], f"{name}_low": ends[0], f"{name}_high": ends[1]}
    predictors = {f"{metric}_{kind}": value for (metric, kind), value in cell.predictors.items()}
    return {"model": cell.model, "data": cell.data, "converged": cell.converged, **predictors, **costs}


def _correlations(predictor: Sequence[float], costs: Sequence[Samples]) -> dict[str, float]:
    x, y = np.array(predictor), np.stack(costs, axis=-1)  # (cells,) and (1 + DRAWS, cells)
    chosen = np.random.default_rng(_SEED).integers(0, len(x), (DRAWS, len(x)))
    found: dict[str, float] = {}
    for name, correlation in _CORRELATIONS.items():
        values = correlation(np.broadcast_to(x, y.shape), y)
        over_cells = correlation(x[chosen], y[0][chosen])
        found |= {name: float(values[0])}
        for suffix, ends in (("", _reflected(values)), ("_cells", _quantiles(over_cells))):
            found |= {f"{name}{suffix}_low": ends[0], f"{name}{suffix}_high": ends[1]}
    return found


def _quantiles(drawn: Samples) -> tuple[float, float]:
    numbers = drawn[~np.isnan(drawn)]
    if len(numbers) == 0:
        return np.nan, np.nan
    low, high = np.quantile(numbers, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _reflected(values: Samples) -> tuple[float, float]:
    """Return the basic bootstrap interval, on Fisher's scale, around the first value from the others.

    The costs are uncertain, which weakens a correlation with them; drawing examples makes them uncertain once more,
    and weakens it about as much again. So the draws lie below what was found about as that lies below what exact
    costs would give, and their quantiles are reflected at what was found. Where examples are few it is too narrow: of
    100 simulated grids of 21 cells with 6 examples each, it held the correlation with exact costs in 82, 61 and 35,
    for standard errors of a cost of 0.13, 0.4 and 0.8 of the standard deviation of exact costs.
    """
    scaled = np.arctanh(np.clip(values, -_CLOSEST_TO_ONE, _CLOSEST_TO_ONE))
    low, high = _quantiles(scaled[1:])
    return float(np.tanh(2 * scaled[0] - high)), float(np.tanh(2 * scaled[0] - low))


def _pearson(x: Samples, y: Samples) -> NDArray[np.float64]:
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # such draws have no correlation, and are left out
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return np.asarray(stats.pearsonr(x, y, axis=-1).statistic)


def _spearman(x: Samples, y: Samples) -> NDArray[np.float64]:
    return _pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))


def _kendall(x: Samples, y: Samples) -> NDArray[np.float64]:
    """Return Kendall's tau-b; scipy's goes through thousands of draws one by one, which took most of the time."""
    orders = _orders(x), _orders(y)
    agreeing, *untied = (
        np.sum(one * other, axis=(-2, -1), dtype=np.float64)
        for one, other in (orders, (orders[0], orders[0]), (orders[1], orders[1]))
    )
    with np.errstate(invalid="ignore"):  # where all are tied there is none
        found = agreeing / np.sqrt(untied[0] * untied[1])
    return np.where((np.isnan(x) | np.isnan(y)).any(axis=-1), np.nan, found)


def _orders(values: Samples) -> NDArray[np.int8]:
    """Return (..., n, n): whether each of n values is above (1), at (0) or below (-1) each other."""
    one, other = values[..., :, None], values[..., None, :]
    return (one > other).astype(np.int8) - (one < other).astype(np.int8)


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
