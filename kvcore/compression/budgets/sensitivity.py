"""Sensitivity: the budget goes where truncation hurts the model's predictions most, as measured."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from kvcore.compression.allocation import rank_at_ratio, spend_within
from kvcore.compression.budgets.waterfill import relative_energy
from kvcore.compression.truncation import truncated
from kvcore.data.batches import Advance, Batch, unobserved
from kvcore.model.forward import hidden_states, inference, logits, positions_at_once
from kvcore.model.geometry import Geometry, LayerKind
from kvcore.model.taps import Point
from kvcore.spectrum.streaming import Spectrum
from kvcore.spectrum.tables import Spectra, kv_dims

Divergences = Mapping[LayerKind, Mapping[int, float]]
_SMALLEST = 1e-30  # stands for zero where a logarithm is taken


def measure_divergences(
    model: PreTrainedModel,
    geometry: Geometry,
    spectra: Spectra,
    batches: Sequence[Batch],
    ratios: Sequence[float],
    advance: Advance = unobserved,
    *,
    point: Point = "projection",
) -> dict[LayerKind, dict[int, float]]:
    """Measure what truncating one layer and kind alone does to the model's predictions.

    What is measured is the expected delta NLL: the divergence KL(p || q) of the truncated model's next-token
    distribution q from the model's own p, in nats per token. The delta NLL of the text itself would be its estimate
    from one draw a position: for a single layer, chance outweighs what truncation does, down to its sign.

    Cost: 1 + layers x 2 x ratios forward passes over the batches.

    Args:
        model: A causal language model.
        geometry: Its key and value projections.
        spectra: Spectrum by layer and kind.
        batches: Token batches; every position counts.
        ratios: Rank ratios to truncate to, below 1.
        advance: Told the number of tokens of each pass over a batch when it is done.
        point: Where keys and values were measured and are truncated.

    Returns:
        By layer and kind, the divergence by rank.
    """
    ranks = {place: [rank_at_ratio(ratio, spectrum.kv_dim) for ratio in ratios] for place, spectrum in spectra.items()}
    sums = {place: dict.fromkeys(ranks[place], 0.0) for place in spectra}
    tokens = sum(batch.token_count for batch in batches)
    with inference(model):
        for batch in batches:
            states = hidden_states(model, batch.tokens, batch.mask)[batch.mask]
            advance(batch.token_count)
            for place in spectra:
                for rank in sums[place]:
                    with truncated(geometry, spectra, {place: rank}, point=point):
                        changed = hidden_states(model, batch.tokens, batch.mask)[batch.mask]
                    sums[place][rank] += _divergence(model, states, changed)
                    advance(batch.token_count)
    return {place: {rank: total / tokens for rank, total in by_rank.items()} for place, by_rank in sums.items()}


def _divergence(model: PreTrainedModel, states: Tensor, changed: Tensor) -> float:
    """Return the summed KL(p || q) over positions, of the predictions from (positions, hidden_size) states."""
    total = 0.0
    at_once = positions_at_once(model)
    for some_states, some_changed in zip(states.split(at_once), changed.split(at_once), strict=True):
        before, after = logits(model, some_states), logits(model, some_changed)
        difference = before - after
        expected = (before.softmax(-1) * difference).sum(-1)
        total += float((expected - before.logsumexp(-1) + after.logsumexp(-1)).double().sum())
    return total


def sensitivity_ranks(
    spectra: Spectra, budget: float, divergences: Divergences, *, floor: float = 0.0
) -> dict[LayerKind, int]:
    """Return the ranks that minimise the summed divergence, as interpolated between the measured ranks.

    A small error of keys or values moves predictions by a divergence in proportion to its energy. So between the
    measured ranks the divergence is interpolated as a power of the relative tail energy, and beyond them it is in
    proportion to it. Of each layer's curve the lower convex hull is taken: along it gains fall from rank to rank,
    so that spending where it gains most is optimal (see `kvcore.compression.allocation.spend`).

    Args:
        spectra: Spectrum by layer and kind.
        budget: Share of the full cache to spend, in (0, 1].
        divergences: By layer and kind, the divergence by rank, see `measure_divergences`.
        floor: Share of its kv_dim that every layer and kind gets in any case.

    Raises:
        SettingError: The budget is not enough for one rank, or for the floor, in each layer and kind.
    """
    gains = {
        place: falling_gains(divergence_curve(spectrum, divergences[place])).tolist()
        for place, spectrum in spectra.items()
    }
    return spend_within(kv_dims(spectra), gains, budget, floor=floor)


def divergence_curve(spectrum: Spectrum, measured: Mapping[int, float]) -> NDArray[np.float64]:
    """Return (kv_dim + 1,): the divergence at ranks 0 to kv_dim, where it is 0."""
    tail = relative_energy(spectrum).flip(0).cumsum(0).flip(0).numpy().clip(min=_SMALLEST)
    known = sorted(
        (math.log(tail[rank]), math.log(max(divergence, _SMALLEST)))
        for rank, divergence in measured.items()
        if rank < spectrum.kv_dim
    )
    places, heights = np.array(known).T
    heights = np.maximum.accumulate(heights)  # more tail, more divergence: what falls is rounding
    wanted = np.log(tail)
    curve = np.interp(wanted, places, heights)
    curve += np.minimum(wanted - places[0], 0) + np.maximum(wanted - places[-1], 0)
    return np.append(np.exp(curve), 0.0)


def falling_gains(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (kv_dim,): what each rank gains along the lower convex hull of a falling curve of (kv_dim + 1,)."""
    hull = [0]
    for rank in range(1, len(curve)):
        while len(hull) > 1 and _slope(curve, hull[-2], hull[-1]) >= _slope(curve, hull[-1], rank):
            hull.pop()
        hull.append(rank)
    return np.concatenate([np.full(after - before, -_slope(curve, before, after)) for before, after in pairwise(hull)])


def _slope(curve: NDArray[np.float64], before: int, after: int) -> float:
    return float(curve[after] - curve[before]) / (after - before)
