"""What spectra predict of costs: points and straight lines through them, from records alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

COSTS = {"nd_ppl": "grid_mean_nd_ppl", "gpt_score": "grid_mean_score"}
_FEWEST_POINTS = 3
_LEVEL = 0.95
_STEPS = 40


def cost_points(cells: pd.DataFrame, records: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return the mean costs over the grid beside NER, one row for each trusted cell with a grid and each cost.

    Args:
        cells: From `kvcore.results.collection.collect`.
        records: Their records, by id.

    Returns:
        Columns: id, model, dataset, language, grid (the ratios, in words), converged, ner_key, ner_value, cost, and
        `measured` with the ends `low` and `high` of its 95 % interval.
    """
    names = ["id", "model", "dataset", "language", "converged", "ner_key", "ner_value"]
    rows = []
    for cell in cells[cells["rank_budget"] == "grid"].to_dict("records"):
        record = records.get(str(cell["id"]))
        if record is None or record.get("status") != "finished":
            continue
        ratios = record["settings"]["rank_budget"]
        for cost, name in COSTS.items():
            measured = (record["perplexity"] if cost == "nd_ppl" else record.get("judged") or {}).get(name)
            if not isinstance(measured, float):  # not judged, or no number
                continue
            low, high = (record["perplexity"] if cost == "nd_ppl" else record["judged"])[f"{name}_interval"]
            rows.append(
                {name: cell[name] for name in names}
                | {"grid": _in_words(ratios), "cost": cost, "measured": measured, "low": low, "high": high}
            )
    return pd.DataFrame(rows, columns=[*names, "grid", "cost", "measured", "low", "high"])


def fitted_lines(points: pd.DataFrame) -> pd.DataFrame:
    """Fit a straight line of every cost over NER, for each model, kind and grid with three points or more.

    Returns:
        Columns: model, grid, cost, kind, cells, pearson, p_value, and along the line `ner`, `fit` and the ends `low`
        and `high` of the 95 % confidence band of the mean, by Student's t.
    """
    parts = []
    for (model, grid, cost), group in points.groupby(["model", "grid", "cost"], sort=False):
        for kind in ("key", "value"):
            x, y = (group[name].to_numpy(dtype=np.float64) for name in (f"ner_{kind}", "measured"))
            if len(x) >= _FEWEST_POINTS and np.ptp(x) > 0 and np.ptp(y) > 0:
                line = _line(x, y)
                parts.append(line.assign(model=model, grid=grid, cost=cost, kind=kind, cells=len(x)))
    names = ["model", "grid", "cost", "kind", "cells", "pearson", "p_value", "ner", "fit", "low", "high"]
    return pd.concat(parts, ignore_index=True)[names] if parts else pd.DataFrame(columns=names)


def _line(x: np.ndarray[Any, np.dtype[np.float64]], y: np.ndarray[Any, np.dtype[np.float64]]) -> pd.DataFrame:
    fit = stats.linregress(x, y)
    along = np.linspace(x.min(), x.max(), _STEPS)
    middle, freedom = fit.intercept + fit.slope * along, len(x) - 2
    noise = np.sqrt(np.sum((y - fit.intercept - fit.slope * x) ** 2) / freedom)
    spread = np.sqrt(1 / len(x) + (along - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))
    half = stats.t.ppf((1 + _LEVEL) / 2, freedom) * noise * spread
    line = {"ner": along, "fit": middle, "low": middle - half, "high": middle + half}
    return pd.DataFrame(line).assign(pearson=fit.rvalue, p_value=fit.pvalue)


def _in_words(ratios: Mapping[str, Sequence[float]]) -> str:
    named = [f"{kind}s {', '.join(f'{ratio:g}' for ratio in ratios[f'{kind}_ratios'])}" for kind in ("key", "value")]
    return "; ".join(named)
