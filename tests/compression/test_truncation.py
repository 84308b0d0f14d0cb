"""Truncated models against a hand-written forward pass with explicit projections."""

import hand_written
import pytest
import torch
from conftest import TEXTS, Packaged, tiny_llama
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from kvcore import measure
from kvcore.compression import truncation
from kvcore.compression.truncation import truncated
from kvcore.model.geometry import LayerKind, Projection, discover
from kvcore.spectrum.tables import Spectra


@pytest.fixture
def spectra(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> Spectra:
    return measure(tiny, tokenizer, TEXTS).spectra


def token_ids(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    return torch.tensor(tokenizer(TEXTS[3])["input_ids"])


def logits(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens[None]).logits[0].double()


@pytest.mark.parametrize("ranks", [(1, 16), (16, 1), (3, 5), (8, 8), (15, 2)])
def test_truncated_forward_equals_explicit_projection(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, spectra: Spectra, ranks: tuple[int, int]
) -> None:
    tokens = token_ids(tokenizer)
    chosen = {place: ranks[0] if place.kind == "key" else ranks[1] for place in spectra}
    projectors = {}
    for place, rank in chosen.items():
        basis = spectra[place].right_singular_vectors[:, :rank]
        projectors[place] = basis @ basis.T
    expected = hand_written.run(tiny, tokens, projectors).logits
    with truncated(discover(tiny), spectra, chosen):
        found = logits(tiny, tokens)
    assert torch.allclose(found, expected, atol=2e-4)
    assert not torch.allclose(found, logits(tiny, tokens), atol=1e-2)


def test_one_layer_alone(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, spectra: Spectra) -> None:
    tokens = token_ids(tokenizer)
    place = LayerKind(1, "value")
    basis = spectra[place].right_singular_vectors[:, :2]
    with truncated(discover(tiny), spectra, {place: 2}):
        found = logits(tiny, tokens)
    assert torch.allclose(found, hand_written.run(tiny, tokens, {place: basis @ basis.T}).logits, atol=2e-4)


def test_full_rank_changes_nothing(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, spectra: Spectra
) -> None:
    tokens, original = token_ids(tokenizer), tiny.model.layers[0].self_attn.k_proj.weight
    with truncated(discover(tiny), spectra, dict.fromkeys(spectra, 16)):
        assert tiny.model.layers[0].self_attn.k_proj.weight is not original
        assert torch.allclose(logits(tiny, tokens), hand_written.run(tiny, tokens).logits, atol=2e-4)


def test_full_rank_changes_nothing_in_the_packaged_models(packaged: Packaged) -> None:
    _, model, tokenizer = packaged
    spectra = measure(model, tokenizer, TEXTS).spectra
    tokens = torch.tensor([tokenizer(TEXTS[3])["input_ids"]])
    with torch.no_grad():
        before = model(tokens).logits.log_softmax(-1)
        with truncated(discover(model), spectra, {place: found.kv_dim for place, found in spectra.items()}):
            assert (model(tokens).logits.log_softmax(-1) - before).abs().max() < 1e-3
        with truncated(discover(model), spectra, dict.fromkeys(spectra, 8)):
            assert (model(tokens).logits.log_softmax(-1) - before).abs().max() > 0.1
        assert torch.equal(model(tokens).logits.log_softmax(-1), before)


@pytest.mark.parametrize("leave_by", ["end", "error", "interrupt"])
def test_the_model_is_bit_identical_afterwards(tiny: LlamaForCausalLM, spectra: Spectra, leave_by: str) -> None:
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in tiny.named_parameters()}
    error = {"error": ZeroDivisionError, "interrupt": KeyboardInterrupt}.get(leave_by)
    if error is None:
        with truncated(discover(tiny), spectra, dict.fromkeys(spectra, 3)):
            pass
    else:
        with pytest.raises(error), truncated(discover(tiny), spectra, dict.fromkeys(spectra, 3)):
            raise error
    after = dict(tiny.named_parameters())
    assert list(after) == list(before)
    for name, (parameter, content) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter, content)


def test_the_model_is_restored_when_folding_fails(
    tiny: LlamaForCausalLM, spectra: Spectra, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold, before, calls = truncation._fold, dict(tiny.named_parameters()), []

    def failing(projection: Projection, basis: Tensor) -> None:
        calls.append(projection)
        if len(calls) == 4:
            raise MemoryError
        fold(projection, basis)

    monkeypatch.setattr(truncation, "_fold", failing)
    with pytest.raises(MemoryError), truncated(discover(tiny), spectra, dict.fromkeys(spectra, 3)):
        pytest.fail("the block must not run")
    assert all(parameter is before[name] for name, parameter in tiny.named_parameters())


@pytest.mark.parametrize("rank", [0, -1, 17])
def test_ranks_out_of_range_are_refused(tiny: LlamaForCausalLM, spectra: Spectra, rank: int) -> None:
    with (
        pytest.raises(ValueError, match=f"rank = {rank} for the keys of layer 0: allowed are 1 to 16"),
        truncated(discover(tiny), spectra, {LayerKind(0, "key"): rank}),
    ):
        pytest.fail("the block must not run")


def test_spectra_of_another_model_are_refused(spectra: Spectra) -> None:
    other = tiny_llama(num_key_value_heads=4)
    with (
        pytest.raises(ValueError, match="keys of layer 0 does not fit this model"),
        truncated(discover(other), spectra, dict.fromkeys(spectra, 1)),
    ):
        pytest.fail("the block must not run")
    with (
        pytest.raises(ValueError, match="keys of layer 2 does not fit this model"),
        truncated(discover(tiny_llama(num_hidden_layers=2)), spectra, {LayerKind(2, "key"): 1}),
    ):
        pytest.fail("the block must not run")
