"""Sensitivity: divergences by hand, and ranks that follow what was measured."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTS
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from kvcore import measure
from kvcore.compression.allocation import spend_within
from kvcore.compression.budgets.sensitivity import (
    CANDIDATES,
    Divergence,
    expected_losses,
    measure_divergences,
    sensitivity_ranks,
)
from kvcore.compression.budgets.waterfill import relative_energy, waterfill_ranks
from kvcore.compression.truncation import truncated
from kvcore.data.batches import Batches, make_batches
from kvcore.data.encoding import encode
from kvcore.data.examples import Example
from kvcore.model.geometry import LayerKind, discover
from kvcore.schema import SettingError
from kvcore.spectrum import Spectrum
from kvcore.spectrum.metrics import tail_energy
from kvcore.spectrum.tables import Spectra, kv_dims


@pytest.fixture
def spectra(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> Spectra:
    return measure(tiny, tokenizer, TEXTS).spectra


@pytest.fixture
def sample(tokenizer: PreTrainedTokenizerBase) -> Batches:
    return make_batches(encode([Example(text) for text in TEXTS], tokenizer), batch_tokens=200)


def log_probabilities(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    with torch.no_grad():
        scores = [model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0] for text in TEXTS]
    return torch.cat(scores).double().log_softmax(-1)


@pytest.mark.parametrize("point", ["projection", "rotary"])
def test_divergence_by_hand(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, spectra: Spectra, sample: Batches, point: Any
) -> None:
    geometry = discover(tiny)
    divergence = Divergence(tiny, geometry, spectra, sample, point=point)
    before = log_probabilities(tiny, tokenizer)
    for ranks in ({LayerKind(1, "value"): 3}, dict.fromkeys(spectra, 5)):
        with truncated(geometry, spectra, ranks, point=point):
            after = log_probabilities(tiny, tokenizer)
        expected = float((before.exp() * (before - after)).sum(1).mean())
        assert expected > 1e-4
        assert divergence.of(ranks) == pytest.approx(expected, rel=1e-3)
    assert divergence.of({}) == pytest.approx(0, abs=1e-6)


def test_layers_are_measured_alone_at_each_ratio(tiny: LlamaForCausalLM, spectra: Spectra, sample: Batches) -> None:
    passes: list[int] = []
    divergence = Divergence(tiny, discover(tiny), spectra, sample, passes.append)
    found = measure_divergences(divergence, spectra, [0.25, 0.5])
    assert sum(passes) == (1 + 2 * len(spectra)) * sample.token_count
    for place in (LayerKind(0, "key"), LayerKind(2, "value")):
        assert found[place] == pytest.approx({rank: divergence.of({place: rank}) for rank in (4, 8)}, rel=1e-6)


def spectrum_of(sigma: Tensor) -> Spectrum:
    return Spectrum(sigma, torch.eye(len(sigma), dtype=torch.float64), 100)


def test_expected_losses_go_through_what_was_measured() -> None:
    spectrum = spectrum_of(torch.tensor([4.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.5], dtype=torch.float64))
    tails = [tail_energy(spectrum.singular_values, rank) for rank in range(9)]
    losses = expected_losses(spectrum, {2: 0.4, 6: 0.01})
    assert losses[[2, 6]].tolist() == pytest.approx([0.4, 0.01])
    slope = math.log(0.4 / 0.01) / math.log(tails[2] / tails[6])
    between = [0.01 * (tails[rank] / tails[6]) ** slope for rank in (3, 4, 5)]
    assert losses[3:6].tolist() == pytest.approx(between)
    assert losses[:2].tolist() == pytest.approx([0.4 * tails[rank] / tails[2] for rank in (0, 1)])
    assert losses[7:].tolist() == pytest.approx([0.01 * tails[7] / tails[6], 0])
    one = expected_losses(spectrum, {4: 0.1})
    assert one.tolist() == pytest.approx([0.1 * tail / tails[4] for tail in tails])


def test_expected_losses_fall_whatever_was_measured() -> None:
    spectrum = spectrum_of(torch.tensor([2.0, 1.0, 1.0, 0.5, 0.0, 0.0], dtype=torch.float64))
    noisy = expected_losses(spectrum, {1: 0.1, 2: -1e-9, 3: 0.2, 5: 0.3})  # at 5 nothing is lost
    assert noisy[[1, 2, 3]].tolist() == pytest.approx([0.2, 0.2, 0.2])
    assert noisy[4:].tolist() == [0, 0, 0]
    assert (np.diff(noisy) <= 0).all()
    assert expected_losses(spectrum, {1: 0.0, 3: -1e-9}).tolist() == [0] * 7


@dataclass
class KnownDivergence:
    """Stands in for a model whose layers cost what is said, and add up; below a rank that is needed, 1 more.

    Keys may cost more together than alone.
    """

    spectra: Spectra
    costs: dict[LayerKind, float]
    needed: dict[LayerKind, int] = field(default_factory=dict)
    keys_together: float = 1.0
    asked: int = 0

    def of(self, ranks: dict[LayerKind, int]) -> float:
        self.asked += 1
        lost = {p: tail_energy(self.spectra[p].singular_values, rank) for p, rank in ranks.items()}
        missed = sum(rank < self.needed.get(p, 0) for p, rank in ranks.items())
        costs = {p: self.costs[p] * (self.keys_together if len(ranks) > 1 and p.kind == "key" else 1) for p in ranks}
        return missed + sum(costs[p] * lost[p] / tail_energy(self.spectra[p].singular_values, 0) for p in ranks)


@pytest.fixture
def alike() -> Spectra:
    sigma = torch.linspace(1, 0.1, 10, dtype=torch.float64)
    places = [LayerKind(layer, kind) for layer in range(3) for kind in ("key", "value")]
    return {place: spectrum_of(sigma) for place in places}


def test_ranks_follow_the_sensitivities(alike: Spectra) -> None:
    costs = {place: 4.0 if place.kind == "value" else 0.25 for place in alike}
    known: Any = KnownDivergence(alike, costs)
    measured = measure_divergences(known, alike, [0.5])
    known.asked = 0
    found = sensitivity_ranks(alike, 0.5, measured, known)
    assert known.asked <= len(CANDIDATES)
    assert sum(found.values()) == 30
    assert all(found[place] > found[LayerKind(place.layer, "key")] for place in alike if place.kind == "value")
    assert known.of(found) < known.of(waterfill_ranks(alike, 0.5))


def test_without_differences_it_is_waterfill(alike: Spectra) -> None:
    known: Any = KnownDivergence(alike, dict.fromkeys(alike, 1.0))
    found = sensitivity_ranks(alike, 0.5, measure_divergences(known, alike, [0.3, 0.6]), known)
    assert known.of(found) == pytest.approx(known.of(waterfill_ranks(alike, 0.5)))


def test_what_all_layers_cost_together_decides(alike: Spectra) -> None:
    """Measured alone, keys and values look alike; the weights of keys are there for what this misses."""
    costs = dict.fromkeys(alike, 1.0)
    together: Any = KnownDivergence(alike, costs, keys_together=2.5)
    found = sensitivity_ranks(alike, 0.5, measure_divergences(together, alike, [0.3, 0.6]), together)
    as_if_alone: Any = KnownDivergence(alike, costs)
    expected = sensitivity_ranks(alike, 0.5, measure_divergences(as_if_alone, alike, [0.3, 0.6]), as_if_alone)
    assert together.of(found) < 0.97 * together.of(expected)
    weighted = {p: relative_energy(s).numpy() * (2.5 if p.kind == "key" else 1) for p, s in alike.items()}
    assert together.of(found) == pytest.approx(together.of(spend_within(kv_dims(alike), weighted, 0.5)))


@pytest.mark.parametrize("truth", [0.0, 0.5, 1.0])
def test_measurements_count_as_far_as_they_hold(alike: Spectra, truth: float) -> None:
    """What layers cost alone may exaggerate what they cost together, or tell nothing of it: then it is waterfill."""
    alone = {place: 4.0**place.layer for place in alike}
    measured = measure_divergences(KnownDivergence(alike, alone), alike, [0.3, 0.6])  # type: ignore[arg-type]
    costs = {place: cost**truth for place, cost in alone.items()}
    known: Any = KnownDivergence(alike, costs)
    found = sensitivity_ranks(alike, 0.5, measured, known)
    gains = {place: costs[place] * relative_energy(spectrum).numpy() for place, spectrum in alike.items()}
    assert known.of(found) == pytest.approx(known.of(spend_within(kv_dims(alike), gains, 0.5)))


def test_layers_that_cost_nothing_get_the_floor(alike: Spectra) -> None:
    costs = {place: 0.0 if place.layer == 0 else 1.0 for place in alike}
    known: Any = KnownDivergence(alike, costs)
    found = sensitivity_ranks(alike, 0.5, measure_divergences(known, alike, [0.3, 0.6]), known, floor=0.2)
    assert (found[LayerKind(0, "key")], found[LayerKind(0, "value")]) == (2, 2)
    with pytest.raises(SettingError, match="rank_budget.floor = 0.6"):
        sensitivity_ranks(alike, 0.5, measure_divergences(known, alike, [0.5]), known, floor=0.6)


def test_a_direction_of_little_energy_that_matters_is_kept(alike: Spectra) -> None:
    """The loss is not convex: of two that need a high rank, both get it, and the others pay."""
    needed = {LayerKind(0, "key"): 9, LayerKind(2, "value"): 8}
    known: Any = KnownDivergence(alike, dict.fromkeys(alike, 0.1), needed)
    found = sensitivity_ranks(alike, 0.5, measure_divergences(known, alike, [0.3, 0.6, 0.9]), known)
    assert sum(found.values()) == 30
    assert all(found[place] >= rank for place, rank in needed.items())
    assert known.of(found) < 0.2 < 1 < known.of(waterfill_ranks(alike, 0.5))
