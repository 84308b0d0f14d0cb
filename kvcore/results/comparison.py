"""Rank budgets against each other, at the same share of the cache and on the same examples."""

from collections import Counter

import numpy as np
import pandas as pd

from kvcore.evaluation.intervals import NO_INTERVAL, Interval, bootstrap_interval, ratio_of_sums
from kvcore.results.collection import cell_table, trusted
from kvcore.schema import UserError

REFERENCE = "uniform"
# Cells that share these have the same spectra, and so the same weights, calibration data and capture.
_SAME = ["model", "dataset", "language", "evaluated_on", "evaluated_language", "spectrum_id"]
_COSTS = ["cost_ratio", "kept_keys", "kept_values", "delta_nll", "delta_nll_low", "delta_nll_high"]
_LIKELIHOODS = ["point", "example", "tokens", "nll"]


def compare_budgets(cells: pd.DataFrame) -> pd.DataFrame:
    """Return what every strategy costs at every budget, and what share that is of the cost of the uniform one.

    Args:
        cells: From `kvcore.results.collection.collect`; those whose gates failed are left out.

    Returns:
        Columns: those of the data, converged (its spectra), budget, strategy, cost_ratio, kept_keys, kept_values,
        delta_nll, and `share`, its ratio to the delta NLL of the uniform budget (NaN where there is none, or where it
        costs nothing, as all of the cache does); each of both with the ends of its 95 % bootstrap interval over
        examples, drawn together for both budgets.

    Raises:
        UserError: No cell has a budget to compare, two cells are of one strategy, or were evaluated on other tokens.
    """
    rows = []
    for data, group in trusted(cells).groupby(_SAME):
        strategies = [_Budgets(record) for record in group["path"]]
        found = {(part.strategy, budget): part for part in strategies for budget in part.points.index}
        times = Counter((part.strategy, budget) for part in strategies for budget in part.points.index)
        twice = [
            path
            for path, part in zip(group["path"], strategies, strict=True)
            if any(times[part.strategy, budget] > 1 for budget in part.points.index)
        ]
        if twice:
            raise UserError("these cells are of one strategy, data and budget:\n" + "\n".join(twice))
        for (strategy, budget), part in found.items():
            reference = found.get((REFERENCE, budget))
            names = dict(zip(_SAME, data, strict=True)) | {"converged": bool(group["converged"].all())}
            rows.append(names | part.row(budget, reference) | {"strategy": strategy})
    if not rows:
        raise UserError("no finished cell has a rank budget with budgets, such as rank_budget=waterfill")
    order = [*_SAME, "budget", "share", "delta_nll"]
    return pd.DataFrame(rows).sort_values(order, ascending=[*[True] * len(_SAME), False, True, True], ignore_index=True)


class _Budgets:
    """What one cell measured at each of its budgets.

    Attributes:
        strategy: Name of its rank budget.
        points: Rows of its perplexity table, by budget.
    """

    def __init__(self, record: str) -> None:
        points = cell_table(record, "perplexity", "strategy", "budget", "point", *_COSTS)
        asked = points[(points["strategy"] != "none") & points["budget"].notna()]
        self.strategy = "none" if asked.empty else str(asked["strategy"].iloc[0])
        self.points = asked.set_index("budget")
        self._likelihoods = cell_table(record, "likelihoods", *_LIKELIHOODS) if len(asked) else pd.DataFrame()

    def row(self, budget: float, reference: "_Budgets | None") -> dict[str, object]:
        """Return what a budget costs."""
        share = self._share(budget, reference) if reference else (np.nan, NO_INTERVAL)
        return {
            "budget": budget,
            **{name: float(self.points[name][budget]) for name in _COSTS},
            "share": share[0],
            "share_low": share[1].low,
            "share_high": share[1].high,
        }

    def _share(self, budget: float, reference: "_Budgets") -> tuple[float, Interval]:
        growth, uniform_growth = self._growth(budget), reference._growth(budget)
        if not self._targets().equals(reference._targets()):
            raise UserError(f"{self.strategy} and {REFERENCE} were evaluated on different examples or tokens")

        numerators, denominators = growth.to_numpy(dtype=np.float64), uniform_growth.to_numpy(dtype=np.float64)
        if not denominators.any():
            return np.nan, NO_INTERVAL
        share = float(numerators.sum() / denominators.sum())
        return share, bootstrap_interval([numerators, denominators], ratio_of_sums)

    def _targets(self) -> "pd.Series[int]":
        """By example, the number of tokens that were predicted."""
        targets: pd.Series[int] = self._likelihoods[self._likelihoods["point"] == 0].set_index("example")["tokens"]
        return targets

    def _growth(self, budget: float) -> "pd.Series[float]":
        """By example, how much its NLL grew over that of the untruncated model."""
        nll = self._likelihoods.pivot(index="example", columns="point", values="nll")
        growth: pd.Series[float] = nll[int(self.points["point"][budget])] - nll[0]
        return growth
