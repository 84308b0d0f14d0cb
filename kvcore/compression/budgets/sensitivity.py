"""Sensitivity: the budget goes where truncation hurts the model's predictions most, as measured."""

import math
from collections.abc import Mapping, Sequence
from itertools import product

from torch import Tensor
from transformers import PreTrainedModel

from kvcore.compression.allocation import Ranks, rank_at_ratio, spend_within
from kvcore.compression.budgets.waterfill import relative_energy
from kvcore.compression.truncation import truncated
from kvcore.data.batches import Advance, Batch, unobserved
from kvcore.model.forward import hidden_states, inference, logits, positions_at_once
from kvcore.model.geometry import Geometry, LayerKind
from kvcore.model.taps import Point
from kvcore.spectrum.tables import Spectra, kv_dims

# What is tried at each budget: how much of the measured differences between layers counts (0: nothing, which is
# waterfill), and how much more or less the keys weigh than was measured.
SHARPNESS = (0.0, 0.5, 1.0)
WEIGHTS_OF_KEYS = (0.4, 0.63, 1.0, 1.6, 2.5)
CANDIDATES = tuple(product(SHARPNESS, WEIGHTS_OF_KEYS))


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


def measure_sensitivities(divergence: Divergence, spectra: Spectra, ratio: float) -> dict[LayerKind, float]:
    """Truncate each layer and kind alone, and return what a unit of its relative tail energy costs in divergence.

    Args:
        divergence: Of the model on calibration data.
        spectra: Spectrum by layer and kind.
        ratio: Rank ratio to truncate to, below 1.
    """
    sensitivities = {}
    for place, spectrum in spectra.items():
        rank = rank_at_ratio(ratio, spectrum.kv_dim)
        tail = float(relative_energy(spectrum)[rank:].sum())
        sensitivities[place] = max(divergence.of({place: rank}), 0.0) / tail if tail else 0.0
    return sensitivities


def sensitivity_ranks(
    spectra: Spectra,
    budget: float,
    sensitivities: Mapping[LayerKind, float],
    divergence: Divergence,
    *,
    floor: float = 0.0,
) -> dict[LayerKind, int]:
    """Return the ranks of least divergence among those that waterfill gives with weighted layers.

    A small error of keys or values moves predictions by a divergence in proportion to its energy. So the divergence
    of all layers together is taken for the sum of their relative tail energies, each times its sensitivity,
    which waterfill minimises exactly. It holds roughly only: errors are not small, and add up in other ways from
    layer to layer. Therefore a few exponents of the sensitivities and weights of keys against values are
    tried, `CANDIDATES`, and the one whose ranks diverge least, measured with all layers truncated, is taken.

    Args:
        spectra: Spectrum by layer and kind.
        budget: Share of the full cache to spend, in (0, 1].
        sensitivities: From `measure_sensitivities`.
        divergence: Of the model on calibration data.
        floor: Share of its kv_dim that every layer and kind gets in any case.

    Raises:
        SettingError: The budget is not enough for one rank, or for the floor, in each layer and kind.
    """
    energies = {place: relative_energy(spectrum) for place, spectrum in spectra.items()}
    positive = [value for value in sensitivities.values() if value > 0]
    typical = math.exp(sum(map(math.log, positive)) / len(positive)) if positive else 1.0
    tried: dict[tuple[int, ...], dict[LayerKind, int]] = {}
    for sharpness, weight_of_keys in CANDIDATES:
        weights = {
            place: (weight_of_keys if place.kind == "key" else 1.0) * (sensitivity / typical) ** sharpness
            for place, sensitivity in sensitivities.items()
        }
        gains = {place: (energy * weights[place]).tolist() for place, energy in energies.items()}
        ranks = spend_within(kv_dims(spectra), gains, budget, floor=floor)
        tried[tuple(ranks.values())] = ranks
    return min(tried.values(), key=divergence.of)
