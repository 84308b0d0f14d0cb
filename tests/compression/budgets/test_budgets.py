"""Rank budgets on spectra whose best ranks are known."""

import itertools
import math

import pytest
import torch
from conftest import TEXTS
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from kvcore.compression.budgets.energy import energy_ranks, ranks_at_energy
from kvcore.compression.budgets.importance import block_influence, importance_ranks
from kvcore.compression.budgets.uniform import ranks_at_ratios, uniform_ranks
from kvcore.compression.budgets.waterfill import waterfill_ranks
from kvcore.data.batches import make_batches
from kvcore.data.encoding import encode
from kvcore.data.examples import Example
from kvcore.model.geometry import LayerKind
from kvcore.schema import SettingError
from kvcore.spectrum import Spectrum
from kvcore.spectrum.metrics import tail_energy
from kvcore.spectrum.tables import Spectra, kv_dims


def spectrum(*singular_values: float) -> Spectrum:
    return Spectrum(torch.tensor(singular_values, dtype=torch.float64), torch.eye(len(singular_values)).double(), 100)


@pytest.fixture
def spectra() -> Spectra:
    return {
        LayerKind(0, "key"): spectrum(8, 1, 1, 0.5),
        LayerKind(0, "value"): spectrum(4, 4, 4, 4),
        LayerKind(1, "key"): spectrum(3, 2, 0.1, 0),
        LayerKind(1, "value"): spectrum(500, 400, 300, 200),
    }


def relative_tail(spectra: Spectra, ranks: dict[LayerKind, int]) -> float:
    return sum(tail_energy(s.singular_values, ranks[p]) / tail_energy(s.singular_values, 0) for p, s in spectra.items())


def test_uniform_is_one_ratio_everywhere(spectra: Spectra) -> None:
    full = kv_dims(spectra)
    assert set(uniform_ranks(full, 0.5).values()) == {2}
    odd = dict.fromkeys(full, 6)
    assert list(uniform_ranks(odd, 0.4).values()) == [3, 3, 2, 2]  # 9.6 of 24 numbers, rounded to 10
    assert ranks_at_ratios(full, {"key": 1.0, "value": 0.25}) == {p: 4 if p.kind == "key" else 1 for p in spectra}
    with pytest.raises(SettingError, match="rank_budget.budgets = 0.2: one rank"):
        uniform_ranks(full, 0.2)


def test_energy_holds_the_share_in_every_layer(spectra: Spectra) -> None:
    # Energies: 64, 1, 1, 0.25 of 66.25; 16 x 4 of 64; 9, 4, 0.01 of 13.01; 25, 16, 9, 4 of 54 (x 10^4).
    assert list(ranks_at_energy(spectra, 0.9).values()) == [1, 4, 2, 3]
    assert list(ranks_at_energy(spectra, 0.6).values()) == [1, 3, 1, 2]
    assert list(ranks_at_energy(spectra, 1.0).values()) == [4, 4, 3, 4]


@pytest.mark.parametrize("budget", [0.25, 0.4, 0.5, 0.75, 0.9, 1.0])
def test_energy_within_a_budget_is_the_largest_share_that_fits(spectra: Spectra, budget: float) -> None:
    numbers = math.floor(budget * 16 + 0.5)
    found = energy_ranks(spectra, budget)
    assert sum(found.values()) <= numbers
    shares = [number / 10000 for number in range(1, 10001)]
    fitting = [share for share in shares if sum(ranks_at_energy(spectra, share).values()) <= numbers]
    expected = ranks_at_energy(spectra, max(fitting)) if fitting else dict.fromkeys(spectra, 1)
    assert sum(found.values()) == sum(expected.values())


@pytest.mark.parametrize("budget", [0.25, 0.4, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_waterfill_equals_an_exhaustive_search(spectra: Spectra, budget: float, floor: float) -> None:
    numbers, least = math.floor(budget * 16 + 0.5), max(1, math.ceil(floor * 4))
    if 4 * least > numbers:
        with pytest.raises(SettingError, match="rank_budget.floor = 0.5"):
            waterfill_ranks(spectra, budget, floor=floor)
        return
    found = waterfill_ranks(spectra, budget, floor=floor)
    candidates = [
        dict(zip(spectra, ranks, strict=True))
        for ranks in itertools.product(range(least, 5), repeat=4)
        if sum(ranks) == numbers
    ]
    assert found in candidates
    assert relative_tail(spectra, found) == pytest.approx(min(relative_tail(spectra, r) for r in candidates), abs=1e-12)


def test_waterfill_does_not_depend_on_the_scale_of_a_layer(spectra: Spectra) -> None:
    scaled = {place: spectrum(*(found.singular_values * 7**place.layer).tolist()) for place, found in spectra.items()}
    assert waterfill_ranks(scaled, 0.5) == waterfill_ranks(spectra, 0.5)


def test_a_layer_of_zeros_gets_the_least(spectra: Spectra) -> None:
    with_zeros = {**spectra, LayerKind(0, "key"): spectrum(0, 0, 0, 0)}
    assert waterfill_ranks(with_zeros, 0.75)[LayerKind(0, "key")] == 1
    assert energy_ranks(with_zeros, 0.75)[LayerKind(0, "key")] == 1


def test_importance_by_hand() -> None:
    places = [LayerKind(layer, kind) for layer in range(2) for kind in ("key", "value")]
    flat = {place: spectrum(*[1.0] * 16) for place in places}
    # Uniform rank 8, loss sqrt(8) everywhere; importance 1 and 2; the floor gives 4 to each, 8 are left of each kind:
    # 2 and 5 in proportion, and the one that rounding leaves goes to the higher score.
    found = importance_ranks(flat, 0.5, {0: 0.1, 1: 0.3}, floor=0.5, alpha=1.0)
    assert found == {place: 4 + (2 if place.layer == 0 else 6) for place in places}
    assert set(importance_ranks(flat, 0.5, {0: 0.1, 1: 0.3}, floor=0.5, alpha=0.0).values()) == {8}
    assert set(importance_ranks(flat, 0.5, {0: 0.2, 1: 0.2}, floor=0.0, alpha=0.7).values()) == {8}


def test_importance_gives_more_to_the_larger_loss_and_stops_at_full_rank() -> None:
    places = [LayerKind(layer, kind) for layer in range(3) for kind in ("key", "value")]
    sizes = {0: 0.0, 1: 1.0, 2: 1e6}
    spectra = {place: spectrum(*[sizes[place.layer]] * 8) for place in places}
    found = importance_ranks(spectra, 0.75, dict.fromkeys(range(3), 0.5), floor=0.5, alpha=0.0)
    for kind in ("key", "value"):
        ranks = [found[LayerKind(layer, kind)] for layer in range(3)]
        assert sum(ranks) == 18
        assert ranks[0] < ranks[1] < ranks[2] == 8


def test_block_influence_by_hand(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    states: list[list[Tensor]] = []
    for text in TEXTS:
        seen: list[Tensor] = []
        handles = [
            layer.register_forward_hook(
                lambda _m, inputs, output, seen=seen: seen.extend([inputs[0][0], output[0]])  # type: ignore[misc]
            )
            for layer in tiny.model.layers
        ]
        with torch.no_grad():
            tiny(torch.tensor([tokenizer(text)["input_ids"]]))
        for handle in handles:
            handle.remove()
        states.append(seen)
    found = block_influence(tiny, make_batches(encode([Example(t) for t in TEXTS], tokenizer), batch_tokens=200))
    for layer in range(3):
        before = torch.cat([seen[2 * layer] for seen in states]).double()
        after = torch.cat([seen[2 * layer + 1] for seen in states]).double()
        cosines = (before * after).sum(1) / before.norm(dim=1) / after.norm(dim=1)
        assert found[layer] == pytest.approx(1 - float(cosines.mean()), abs=1e-5)
    assert not any(module._forward_hooks for module in tiny.modules())
