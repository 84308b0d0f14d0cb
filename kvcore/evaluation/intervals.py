"""How uncertain a number is, had other examples been drawn: bootstrap intervals."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000
_SEED = 0  # the same draws every time: an interval does not change when nothing else does

Samples = NDArray[np.float64]


class Interval(NamedTuple):
    """Ends of a 95 % interval; both NaN where there is nothing to draw from."""

    low: float
    high: float


NO_INTERVAL = Interval(math.nan, math.nan)


def bootstrap_interval(
    samples: Sequence[ArrayLike], statistic: Callable[..., Any], *, vectorized: bool = True
) -> Interval:
    """Return the 95 % percentile interval of a statistic over examples drawn with replacement.

    Args:
        samples: One or more sequences with an entry for each example; they are drawn together.
        statistic: Given as many arrays as there are samples. Vectorized: it also takes an `axis`, along which
            it reduces; else it takes one draw and returns one number.
        vectorized: Which of both it is.

    Returns:
        The interval; NaN with fewer than two examples. Draws whose statistic is not a number are left out, and
        where all are, so is the interval.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if len(arrays[0]) < 2:
        return NO_INTERVAL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # draws that are no number are left out below
        drawn = stats.bootstrap(
            arrays,
            statistic,
            paired=True,
            vectorized=vectorized,
            n_resamples=RESAMPLES,
            batch=100,
            method="percentile",
            rng=np.random.default_rng(_SEED),
        ).bootstrap_distribution
    numbers = drawn[~np.isnan(drawn)]
    if len(numbers) == 0:
        return NO_INTERVAL
    low, high = np.quantile(numbers, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return Interval(float(low), float(high))


def mean_interval(values: ArrayLike) -> Interval:
    """Return the 95 % bootstrap interval of a mean."""
    return bootstrap_interval([values], np.mean)


def ratio_of_sums(numerators: Samples, denominators: Samples, axis: int = -1) -> Samples:
    """Return the ratio of two sums along an axis, such as NLL per token."""
    return np.asarray(numerators.sum(axis) / denominators.sum(axis))
