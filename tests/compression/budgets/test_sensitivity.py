"""Sensitivity: divergences by hand, and ranks that follow what was measured."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import TEXTS
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from kvcore import measure
from kvcore.compression.budgets.sensitivity import CANDIDATES, Divergence, measure_sensitivities, sensitivity_ranks
from kvcore.compression.budgets.waterfill import waterfill_ranks
from kvcore.compression.truncation import truncated
from kvcore.data.batches import Batches, make_batches
from kvcore.data.encoding import encode
from kvcore.data.examples import Example
from kvcore.model.geometry import LayerKind, discover
from kvcore.schema import SettingError
from kvcore.spectrum import Spectrum
from kvcore.spectrum.metrics import tail_energy
from kvcore.spectrum.tables import Spectra


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


def test_sensitivity_is_divergence_over_lost_energy(tiny: LlamaForCausalLM, spectra: Spectra, sample: Batches) -> None:
    passes: list[int] = []
    divergence = Divergence(tiny, discover(tiny), spectra, sample, passes.append)
    found = measure_sensitivities(divergence, spectra, 0.5)
    assert sum(passes) == (1 + len(spectra)) * sample.token_count
    for place in (LayerKind(0, "key"), LayerKind(2, "value")):
        sigma = spectra[place].singular_values
        lost = tail_energy(sigma, 8) / tail_energy(sigma, 0)
        assert found[place] == pytest.approx(divergence.of({place: 8}) / lost, rel=1e-6)


@dataclass
class KnownDivergence:
    """Stands in for a model whose layers cost what is said, and add up."""

    spectra: Spectra
    costs: dict[LayerKind, float]
    asked: int = 0

    def of(self, ranks: dict[LayerKind, int]) -> float:
        self.asked += 1
        lost = {p: tail_energy(self.spectra[p].singular_values, rank) for p, rank in ranks.items()}
        return sum(self.costs[p] * lost[p] / tail_energy(self.spectra[p].singular_values, 0) for p in ranks)


@pytest.fixture
def alike() -> Spectra:
    sigma = torch.linspace(1, 0.1, 10, dtype=torch.float64)
    places = [LayerKind(layer, kind) for layer in range(3) for kind in ("key", "value")]
    return {place: Spectrum(sigma, torch.eye(10, dtype=torch.float64), 100) for place in places}


def test_ranks_follow_the_sensitivities(alike: Spectra) -> None:
    costs = {place: 4.0 if place.kind == "value" else 0.25 for place in alike}
    known: Any = KnownDivergence(alike, costs)
    sensitivities = measure_sensitivities(known, alike, 0.5)
    assert sensitivities == pytest.approx(costs)
    known.asked = 0
    found = sensitivity_ranks(alike, 0.5, sensitivities, known)
    assert known.asked <= len(CANDIDATES)
    assert sum(found.values()) == 30
    assert all(found[place] > found[LayerKind(place.layer, "key")] for place in alike if place.kind == "value")
    assert known.of(found) < known.of(waterfill_ranks(alike, 0.5))


def test_without_differences_it_is_waterfill(alike: Spectra) -> None:
    known: Any = KnownDivergence(alike, dict.fromkeys(alike, 1.0))
    found = sensitivity_ranks(alike, 0.5, measure_sensitivities(known, alike, 0.5), known)
    assert known.of(found) == pytest.approx(known.of(waterfill_ranks(alike, 0.5)))


def test_layers_that_cost_nothing_get_the_floor(alike: Spectra) -> None:
    costs = {place: 0.0 if place.layer == 0 else 1.0 for place in alike}
    known: Any = KnownDivergence(alike, costs)
    found = sensitivity_ranks(alike, 0.5, measure_sensitivities(known, alike, 0.5), known, floor=0.2)
    assert (found[LayerKind(0, "key")], found[LayerKind(0, "value")]) == (2, 2)
    with pytest.raises(SettingError, match="rank_budget.floor = 0.6"):
        sensitivity_ranks(alike, 0.5, costs, known, floor=0.6)
