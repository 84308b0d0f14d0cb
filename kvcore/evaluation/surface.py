"""The perplexity surface: one row for each pair of a key ratio and a value ratio."""

import math
from collections.abc import Sequence

import pandas as pd
from transformers import PreTrainedModel

from kvcore.compression.allocation import uniform_ranks
from kvcore.compression.truncation import truncated
from kvcore.data.batches import Advance, Batch, unobserved
from kvcore.evaluation.perplexity import LikelihoodSum, sum_likelihood
from kvcore.model.geometry import Geometry
from kvcore.model.taps import Point
from kvcore.spectrum.tables import Spectra

FULL = (1.0, 1.0)


def grid_points(key_ratios: Sequence[float], value_ratios: Sequence[float]) -> list[tuple[float, float]]:
    """Return all pairs of a key ratio and a value ratio, (1, 1) first whether or not it is in the grid."""
    pairs = [(key_ratio, value_ratio) for key_ratio in key_ratios for value_ratio in value_ratios]
    return [FULL, *(pair for pair in pairs if pair != FULL)]


def perplexity_surface(
    model: PreTrainedModel,
    geometry: Geometry,
    spectra: Spectra,
    batches: Sequence[Batch],
    points: Sequence[tuple[float, float]],
    advance: Advance = unobserved,
    *,
    point: Point = "projection",
) -> pd.DataFrame:
    """Measure perplexity at pairs of rank ratios, the first of which is (1, 1), the untruncated model.

    Args:
        model: A causal language model.
        geometry: Its key and value projections.
        spectra: Spectrum by layer and kind.
        batches: What to score.
        points: (key ratio, value ratio), from `grid_points`.
        advance: Told the number of tokens of each batch when it is done.
        point: Where keys and values were measured and are truncated.

    Returns:
        Columns key_ratio, value_ratio, tokens, nll, perplexity, bits_per_byte, nd_ppl, delta_nll. `nll` is the
        sum over tokens in nats. nd_ppl = (PPL - PPL(1,1)) / PPL(1,1), delta_nll = ln(PPL / PPL(1,1)).
    """
    sums: list[LikelihoodSum] = []
    for key_ratio, value_ratio in points:
        ranks = uniform_ranks(spectra, {"key": key_ratio, "value": value_ratio})
        with truncated(geometry, spectra, ranks, point=point):
            sums.append(sum_likelihood(model, batches, advance))
    baseline = sums[0]
    rows = []
    for (key_ratio, value_ratio), total in zip(points, sums, strict=True):
        delta_nll = total.mean_nll - baseline.mean_nll
        rows.append(
            {
                "key_ratio": key_ratio,
                "value_ratio": value_ratio,
                "tokens": total.tokens,
                "nll": total.nll,
                "perplexity": total.perplexity,
                "bits_per_byte": total.bits_per_byte,
                "nd_ppl": _relative_growth(delta_nll),
                "delta_nll": delta_nll,
            }
        )
    return pd.DataFrame(rows)


def grid_mean_nd_ppl(surface: pd.DataFrame) -> float | None:
    """Return the mean ND-PPL over the grid without (1, 1); None if there is nothing else."""
    truncated_points = surface.iloc[1:]
    return float(truncated_points["nd_ppl"].mean()) if len(truncated_points) else None


def _relative_growth(delta_nll: float) -> float:
    try:
        return math.expm1(delta_nll)
    except OverflowError:
        return math.inf
