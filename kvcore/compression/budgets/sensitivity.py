"""Sensitivity: the budget goes where truncation hurts the model's predictions most, as measured."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from torch import Tensor
from transformers import PreTrainedModel

from kvcore.compression.allocation import Ranks, rank_at_ratio, spend_within
from kvcore.compression.budgets.waterfill import relative_tails
from kvcore.compression.truncation import truncated
from kvcore.data.batches import Advance, Batch, unobserved
from kvcore.model.forward import hidden_states, inference, logits, positions_at_once
from kvcore.model.geometry import Geometry, LayerKind
from kvcore.model.taps import Point
from kvcore.spectrum.streaming import Spectrum
from kvcore.spectrum.tables import Spectra, kv_dims

# What is tried at each budget: how much of the measured losses counts (0: nothing, which is waterfill), and how much
# more or less the keys weigh than was measured.
SHARPNESS = (0.0, 0.5, 1.0)
WEIGHTS_OF_KEYS = (0.4, 0.63, 1.0, 1.6, 2.5)
CANDIDATES = tuple(product(SHARPNESS, WEIGHTS_OF_KEYS))

Losses = NDArray[np.float64]


class Divergence:
    """The expected delta NLL of a truncated model on a sample of text, in nats per token.

    That is the divergence KL(p || q) of its next-token distribution q from the model's own p. The delta NLL of the
    text would be an estimate of it from one draw a position: for one layer of many, chance outweighs what
    truncation does, down to the sign.

    Cost: a forward pass over the sample for each allocation.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        geometry: Geometry,
        spectra: Spectra,
        sample: Sequence[Batch],
        advance: Advance = unobserved,
        *,
        point: Point = "projection",
    ) -> None:
        """Run the untruncated model.

        Args:
            model: A causal language model.
            geometry: Its key and value projections.
            spectra: Spectrum by layer and kind.
            sample: Token batches; every position counts.
            advance: Told the number of tokens of each pass over a batch when it is done.
            point: Where keys and values were measured and are truncated.
        """
        self._model, self._geometry, self._spectra, self._sample = model, geometry, spectra, sample
        self._advance, self._point = advance, point
        self._tokens = sum(batch.token_count for batch in sample)
        with inference(model):
            self._states = [self._run(batch) for batch in sample]

    def of(self, ranks: Ranks) -> float:
        """Measure it for the rank of some or all layers and kinds."""
        total = 0.0
        with truncated(self._geometry, self._spectra, ranks, point=self._point), inference(self._model):
            for batch, states in zip(self._sample, self._states, strict=True):
                total += _summed_divergence(self._model, states, self._run(batch))
        return total / self._tokens

    def _run(self, batch: Batch) -> Tensor:
        states = hidden_states(self._model, batch.tokens, batch.mask)
        self._advance(batch.token_count)
        return states[batch.mask.to(states.device)]


def _summed_divergence(model: PreTrainedModel, states: Tensor, changed: Tensor) -> float:
    """Return KL(p || q) summed over the positions of two (positions, hidden_size) states."""
    total = 0.0
    at_once = positions_at_once(model)
    for some_states, some_changed in zip(states.split(at_once), changed.split(at_once), strict=True):
        before, after = logits(model, some_states), logits(model, some_changed)
        expected = (before.softmax(-1) * (before - after)).sum(-1)
        total += float((expected - before.logsumexp(-1) + after.logsumexp(-1)).double().sum())
    return total


def measure_divergences(
    divergence: Divergence, spectra: Spectra, ratios: Iterable[float]
) -> dict[LayerKind, dict[int, float]]:
    """Truncate each layer and kind alone to each rank ratio, and return the divergence by its rank.

    Args:
        divergence: Of the model on calibration data.
        spectra: Spectrum by layer and kind.
        ratios: Rank ratios, below 1.
    """
    return {
        place: {
            rank: divergence.of({place: rank}) for rank in {rank_at_ratio(ratio, spectrum.kv_dim) for ratio in ratios}
        }
        for place, spectrum in spectra.items()
    }


def expected_losses(spectrum: Spectrum, measured: Mapping[int, float]) -> Losses:
    """Return (kv_dim + 1,) float64: the divergence to expect at each rank from 0 to kv_dim, falling.

    A small error of keys or values moves predictions by a divergence in proportion to its energy: so it is expected
    below the smallest and above the largest rank that was measured. Between two, its logarithm is interpolated, over
    that of the tail energy: a direction of little energy may matter much.

    Args:
        spectrum: Of the keys or values of a layer.
        measured: Divergence by rank.
    """
    tails = relative_tails(spectrum).cpu().numpy()
    ranks = [rank for rank in sorted(measured, reverse=True) if tails[rank] > 0]
    highest = np.maximum.accumulate([max(measured[rank], 0.0) for rank in ranks])
    known = [(rank, loss) for rank, loss in zip(ranks, highest, strict=True) if loss > 0]
    losses = np.zeros_like(tails)
    if not known:
        return losses
    at = np.log(tails[[rank for rank, _ in known]])
    logarithms = np.log([loss for _, loss in known])
    inside = tails > 0
    x = np.log(tails[inside])
    beyond = np.minimum(x - at[0], 0) + np.maximum(x - at[-1], 0)
    losses[inside] = np.exp(np.interp(x, at, logarithms) + beyond)
    return losses


def sensitivity_ranks(
    spectra: Spectra,
    budget: float,
    measured: Mapping[LayerKind, Mapping[int, float]],
    divergence: Divergence,
    *,
    floor: float = 0.0,
) -> dict[LayerKind, int]:
    """Return the ranks of least divergence among those that are best if layers add up as expected.

    The divergence of all layers together is taken for the sum of what each is expected to cost alone, which `spend`
    minimises where a layer gains less from rank to rank; where it does not, its losses are replaced by the largest
    convex function below them. It holds roughly only: layers add up in other ways. Therefore some blends with their
    relative tail energy and weights of keys against values are tried, `CANDIDATES`, and the one whose ranks diverge
    least, measured with all layers truncated, is taken.

    Args:
        spectra: Spectrum by layer and kind.
        budget: Share of the full cache to spend, in (0, 1].
        measured: From `measure_divergences`.
        divergence: Of the model on calibration data.
        floor: Share of its kv_dim that every layer and kind gets in any case.

    Raises:
        SettingError: The budget is not enough for one rank, or for the floor, in each layer and kind.
    """
    losses = {place: expected_losses(spectrum, measured[place]) for place, spectrum in spectra.items()}
    tails = {place: relative_tails(spectrum).cpu().numpy() for place, spectrum in spectra.items()}
    tried: dict[tuple[int, ...], dict[LayerKind, int]] = {}
    for sharpness, weight_of_keys in CANDIDATES:
        gains = {
            place: _falling_gains(losses[place] ** sharpness * tails[place] ** (1 - sharpness))
            * (weight_of_keys if place.kind == "key" else 1.0)
            for place in spectra
        }
        ranks = spend_within(kv_dims(spectra), gains, budget, floor=floor)
        tried[tuple(ranks.values())] = ranks
    return min(tried.values(), key=divergence.of)


def _falling_gains(losses: Losses) -> Losses:
    """Return (kv_dim,) what each rank gains under the largest convex function below (kv_dim + 1,) losses."""
    return np.asarray(isotonic_regression(-np.diff(losses), increasing=False).x)
