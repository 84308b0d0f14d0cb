"""What truncation costs in perplexity: one row for each allocation of ranks."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from kvcore.compression.allocation import Allocation, KvDims
from kvcore.compression.truncation import truncated
from kvcore.data.batches import Advance, Batch, unobserved
from kvcore.evaluation.intervals import NO_INTERVAL, Interval, Samples, bootstrap_interval, ratio_of_sums
from kvcore.evaluation.perplexity import Likelihoods, exponential, measure_likelihoods
from kvcore.model.geometry import Geometry
from kvcore.model.taps import Point
from kvcore.spectrum.tables import Spectra


class PerplexitySurface(NamedTuple):
    """Perplexity at every allocation.

    Attributes:
        points: One row for each allocation, the untruncated model first. `nll` is the sum over tokens in nats;
            nd_ppl = (PPL - PPL(1,1)) / PPL(1,1), delta_nll = ln(PPL / PPL(1,1)); `_low` and `_high` are the ends of
            95 % bootstrap intervals over examples, drawn together with those of the untruncated model. Other
            columns: point (number of the row) and those of `Allocation` and `Cost`.
        examples: What the points are sums of, so that everything can be computed again: point, example (index
            among those that were batched), tokens, target_bytes, nll.
    """

    points: pd.DataFrame
    examples: pd.DataFrame


def perplexity_surface(
    model: PreTrainedModel,
    geometry: Geometry,
    spectra: Spectra,
    batches: Sequence[Batch],
    allocations: Sequence[Allocation],
    advance: Advance = unobserved,
    *,
    point: Point = "projection",
) -> PerplexitySurface:
    """Measure perplexity at allocations, the first of which is that of the untruncated model.

    Args:
        model: A causal language model.
        geometry: Its key and value projections.
        spectra: Spectrum by layer and kind.
        batches: What to score.
        allocations: What to truncate to.
        advance: Told the number of tokens of each batch when it is done.
        point: Where keys and values were measured and are truncated.
    """
    found: list[Likelihoods] = []
    for allocation in allocations:
        with truncated(geometry, spectra, allocation.truncating(geometry.kv_dims), point=point):
            found.append(measure_likelihoods(model, batches, advance))
    rows = [
        {"point": number} | _described(allocation, geometry.kv_dims) | _measured(likelihoods, found[0])
        for number, (allocation, likelihoods) in enumerate(zip(allocations, found, strict=True))
    ]
    examples = [_by_example(number, likelihoods) for number, likelihoods in enumerate(found)]
    return PerplexitySurface(pd.DataFrame(rows), pd.concat(examples, ignore_index=True))


def grid_mean_nd_ppl(surface: PerplexitySurface) -> tuple[float | None, Interval]:
    """Return the mean ND-PPL over the grid without (1, 1), and its 95 % bootstrap interval over examples.

    None where the allocations are not those of a grid.
    """
    points = surface.points
    wanted = points.index[(points["key_ratio"] < 1) | (points["value_ratio"] < 1)]  # NaN where there is no grid
    if len(wanted) == 0:
        return None, NO_INTERVAL
    nll = surface.examples.pivot_table(index="example", columns="point", values="nll")
    tokens = surface.examples.groupby("example")["tokens"].first()
    columns = [nll[point].to_numpy() for point in points.loc[wanted, "point"]]

    def mean_growth(tokens: Samples, baseline: Samples, *truncated_: Samples, axis: int = -1) -> Samples:
        counts = tokens.sum(axis)
        with np.errstate(over="ignore"):
            growth = [np.expm1((nll.sum(axis) - baseline.sum(axis)) / counts) for nll in truncated_]
            return np.asarray(np.mean(growth, axis=0))

    interval = bootstrap_interval([tokens.to_numpy(), nll[0].to_numpy(), *columns], mean_growth)
    return float(points.loc[wanted, "nd_ppl"].mean()), interval


def _described(allocation: Allocation, kv_dims: KvDims) -> dict[str, object]:
    asked = {
        name: math.nan if value is None else value
        for name, value in asdict(allocation).items()
        if name in ("key_ratio", "value_ratio", "budget")
    }
    return {"strategy": allocation.strategy, "asked": allocation.asked, **asked, **asdict(allocation.cost(kv_dims))}


def _measured(likelihoods: Likelihoods, baseline: Likelihoods) -> dict[str, object]:
    delta_nll = likelihoods.mean_nll - baseline.mean_nll
    mean = bootstrap_interval([likelihoods.nll, likelihoods.tokens], ratio_of_sums)
    delta = bootstrap_interval([likelihoods.nll - baseline.nll, likelihoods.tokens], ratio_of_sums)
    return {
        "tokens": likelihoods.total_tokens,
        "nll": likelihoods.total_nll,
        "perplexity": likelihoods.perplexity,
        "perplexity_low": exponential(mean.low),
        "perplexity_high": exponential(mean.high),
        "bits_per_byte": likelihoods.bits_per_byte,
        "nd_ppl": _growth(delta_nll),
        "nd_ppl_low": _growth(delta.low),
        "nd_ppl_high": _growth(delta.high),
        "delta_nll": delta_nll,
        "delta_nll_low": delta.low,
        "delta_nll_high": delta.high,
    }


def _by_example(number: int, likelihoods: Likelihoods) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "point": number,
            "example": likelihoods.examples,
            "tokens": likelihoods.tokens,
            "target_bytes": likelihoods.target_bytes,
            "nll": likelihoods.nll,
        }
    )


def _growth(delta_nll: float) -> float:
    try:
        return math.expm1(delta_nll)
    except OverflowError:
        return math.inf
