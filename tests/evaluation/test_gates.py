"""Gates pass on sound runs and fail on each fault they are there for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import TEXTS, Packaged, packaged_weights
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from kvcore import measure
from kvcore.data.batches import Batches, make_batches
from kvcore.data.encoding import encode
from kvcore.data.examples import Example
from kvcore.evaluation import gates
from kvcore.evaluation.gates import Gate, check_perplexity, check_tail_energy, check_token_count, failed
from kvcore.model.geometry import Geometry, LayerKind, discover
from kvcore.model.loading import load_model, load_tokenizer
from kvcore.spectrum.tables import Spectra


def batches_of(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Batches:
    return make_batches(encode([Example(text) for text in texts], tokenizer), batch_tokens=200)


@pytest.fixture
def spectra(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> Spectra:
    return measure(tiny, tokenizer, TEXTS).spectra


def all_gates(model: Any, spectra: Spectra, batches: Batches, sample: Batches) -> dict[str, Gate]:
    geometry = discover(model)
    unchanged, moved = check_perplexity(model, geometry, spectra, sample)
    return {
        "token_count": check_token_count(spectra, batches.token_count),
        "full_rank": unchanged,
        "tail_energy": check_tail_energy(model, geometry, spectra, sample),
        "perplexity_moves": moved,
    }


def test_all_pass_on_the_packaged_models(packaged: Packaged) -> None:
    _, model, tokenizer = packaged
    spectra = measure(model, tokenizer, TEXTS).spectra
    batches = batches_of(TEXTS, tokenizer)
    found = all_gates(model, spectra, batches, batches_of(TEXTS[:3], tokenizer))
    assert failed(found) == []
    assert found["token_count"] == Gate(passed=True, value=0, limit=0)
    assert found["full_rank"].value < 1e-5
    assert found["perplexity_moves"].value > 0.1


@pytest.mark.parametrize("sample", [2, len(TEXTS)])
def test_all_pass_on_a_part_and_on_all_of_the_data(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, spectra: Spectra, sample: int
) -> None:
    found = all_gates(tiny, spectra, batches_of(TEXTS, tokenizer), batches_of(TEXTS[:sample], tokenizer))
    assert failed(found) == []
    assert found["full_rank"].limit == 1e-4


def test_all_pass_in_bfloat16() -> None:
    weights = packaged_weights("smollm2_135m")
    model = load_model(weights, dtype="bfloat16", device="cpu", attention="sdpa")
    tokenizer = load_tokenizer(weights)
    spectra = measure(model, tokenizer, TEXTS).spectra
    found = all_gates(model, spectra, batches_of(TEXTS, tokenizer), batches_of(TEXTS, tokenizer))
    assert failed(found) == []
    assert found["full_rank"].limit == 1e-2


def test_a_lost_token_fails_the_count(tokenizer: PreTrainedTokenizerBase, spectra: Spectra) -> None:
    place = LayerKind(2, "value")
    short = dict(spectra) | {place: replace(spectra[place], tokens=spectra[place].tokens - 1)}
    assert check_token_count(short, batches_of(TEXTS, tokenizer).token_count) == Gate(passed=False, value=1, limit=0)


def test_wrong_vectors_fail_full_rank(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, spectra: Spectra
) -> None:
    place = LayerKind(1, "key")
    wrong = dict(spectra) | {
        place: replace(spectra[place], right_singular_vectors=spectra[place].right_singular_vectors * 1.1)
    }
    unchanged, _ = check_perplexity(tiny, discover(tiny), wrong, batches_of(TEXTS, tokenizer))
    assert not unchanged.passed


@pytest.mark.parametrize("kind", ["key", "value"])
def test_truncation_that_does_not_reach_attention_is_seen(
    tiny: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    spectra: Spectra,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """A truncation that forgets the keys, or the values, fails the gate although the other kind moves."""
    really_truncated = gates.truncated

    @contextmanager
    def forgetful(geometry: Geometry, spectra: Spectra, ranks: dict[LayerKind, int], **where: Any) -> Iterator[None]:
        reached = {place: rank for place, rank in ranks.items() if place.kind != kind}
        with really_truncated(geometry, spectra, reached, **where):
            yield

    monkeypatch.setattr(gates, "truncated", forgetful)
    _, moved = check_perplexity(tiny, discover(tiny), spectra, batches_of(TEXTS, tokenizer))
    assert not moved.passed
    assert moved.value == 0
    assert not check_tail_energy(tiny, discover(tiny), spectra, batches_of(TEXTS, tokenizer)).passed


@pytest.mark.parametrize("sample", [2, len(TEXTS)])
def test_vectors_of_another_layer_fail_the_tail_energy_only_with_its_values(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, spectra: Spectra, sample: int
) -> None:
    """On all the data the singular values are the prediction, so a swapped spectrum is seen there."""
    swapped = dict(spectra) | {LayerKind(0, "key"): spectra[LayerKind(2, "key")]}
    gate = check_tail_energy(tiny, discover(tiny), swapped, batches_of(TEXTS[:sample], tokenizer))
    assert gate.passed == (sample < len(TEXTS))


def test_wrong_singular_values_fail_the_tail_energy(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, spectra: Spectra
) -> None:
    place = LayerKind(0, "value")
    wrong = dict(spectra) | {place: replace(spectra[place], singular_values=spectra[place].singular_values * 1.001)}
    gate = check_tail_energy(tiny, discover(tiny), wrong, batches_of(TEXTS, tokenizer))
    assert not gate.passed
    assert gate.value == pytest.approx(0.002, rel=0.01)


def test_gates_leave_the_model_as_it_was(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, spectra: Spectra
) -> None:
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in tiny.named_parameters()}
    all_gates(tiny, spectra, batches_of(TEXTS, tokenizer), batches_of(TEXTS, tokenizer))
    for name, parameter in tiny.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.modules())
