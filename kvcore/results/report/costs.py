"""What spectra predict of costs: points and straight lines through them, from records alone."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from kvcore.results.collection import on_own_data, trusted

COSTS = {"nd_ppl": "grid_mean_nd_ppl", "gpt_score": "grid_mean_score"}
_FEWEST_POINTS = 3
_LEVEL = 0.95
_STEPS = 40
_SHOWN = ["id", "model", "dataset", "language", "surface", "converged", "ner_key", "ner_value"]


def cost_points(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the mean costs over the grid beside NER, one row for each trusted spectrum, grid and cost.

    A cell that was evaluated on other data than its own says nothing of what its NER predicts.

    Args:
        cells: From `kvcore.results.collection.collect`.

    Returns:
        Columns: id, model, dataset, language, surface (see `collect`), converged, ner_key, ner_value, cost (`nd_ppl` or
        `gpt_score`), and `measured` with the ends `low` and `high` of its 95 % interval over examples.
    """
    cells = trusted(cells)
    parts, own = [], cells[on_own_data(cells)]
    for cost, name in COSTS.items():
        names = {name: "measured", f"{name}_low": "low", f"{name}_high": "high"}
        grids = own.dropna(subset=["surface", name]).sort_values("judged", ascending=False, kind="stable")
        grids = grids.drop_duplicates(["model", "spectrum_id", "surface"]).sort_index()
        parts.append(grids[[*_SHOWN, *names]].rename(columns=names).assign(cost=cost))
    return pd.concat(parts, ignore_index=True)


def fitted_lines(points: pd.DataFrame) -> pd.DataFrame:
    """Fit a straight line of every cost over NER, for each model, kind and grid with three points or more.

    Returns:
        Columns: model, surface, cost, kind, cells, pearson, p_value, and along the line `ner`, `fit` and the ends `low`
        and `high` of the 95 % confidence band of the mean, by Student's t.
    """
    names = ["model", "surface", "cost", "kind", "cells", "pearson", "p_value", "ner", "fit", "low", "high"]
    parts = [pd.DataFrame(columns=names)]
    for (model, surface, cost), group in points.groupby(["model", "surface", "cost"], sort=False):
        for kind in ("key", "value"):
            x, y = (group[name].to_numpy(dtype=np.float64) for name in (f"ner_{kind}", "measured"))
            x, y = x[np.isfinite(y)], y[np.isfinite(y)]
            if len(x) >= _FEWEST_POINTS and np.ptp(x) > 0 and np.ptp(y) > 0:
                named = {"model": str(model), "surface": str(surface), "cost": str(cost), "kind": kind, "cells": len(x)}
                parts.append(_line(x, y).assign(**named)[names])
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> pd.DataFrame:
    fit: Any = stats.linregress(x, y)
    along = np.linspace(x.min(), x.max(), _STEPS)
    middle, freedom = fit.intercept + fit.slope * along, len(x) - 2
    noise = np.sqrt(np.sum((y - fit.intercept - fit.slope * x) ** 2) / freedom)
    spread = np.sqrt(1 / len(x) + (along - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))
    half = stats.t.ppf((1 + _LEVEL) / 2, freedom) * noise * spread
    line = {"ner": along, "fit": middle, "low": middle - half, "high": middle + half}
    return pd.DataFrame(line).assign(pearson=fit.rvalue, p_value=fit.pvalue)
