"""Measured spectra against brute force: all keys and values at once, in float64, captured another way."""

import hand_written
import numpy as np
import pytest
import torch
from conftest import TEXTS, Packaged, tiny_llama
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from kvcore import measure
from kvcore.data.sources import find_data, read_rows
from kvcore.schema import UserError
from kvcore.spectrum.measurement import Measurement


def normalized_effective_rank(rows: np.ndarray) -> float:
    """NER of all rows at once, written anew with numpy."""
    sigma = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    share = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(share * np.log(share)).sum()) / rows.shape[1])


def brute_force(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> dict[tuple[int, str], float]:
    """Multiply each layer's normed input with its projection, one unpadded text at a time, head included."""
    rows: dict[tuple[int, str], list[np.ndarray]] = {}
    for text in texts:
        tokens = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = model(tokens, output_hidden_states=True).hidden_states
            for index, layer in enumerate(model.base_model.layers):
                normed = layer.input_layernorm(states[index])[0]
                for kind, linear in (("key", layer.self_attn.k_proj), ("value", layer.self_attn.v_proj)):
                    rows.setdefault((index, kind), []).append((normed @ linear.weight.T).double().numpy())
    return {place: normalized_effective_rank(np.concatenate(batches)) for place, batches in rows.items()}


def ner(measured: Measurement) -> dict[tuple[int, str], float]:
    return {(row.layer, row.kind): row.ner for row in measured.layers.itertuples()}


def pocket_texts(count: int) -> list[str]:
    rows = read_rows(find_data(source="pocket", path="general.jsonl"))[:count]
    return [f"{row['instruction']} {row['output']}" for row in rows]


def test_packaged_models_equal_brute_force(packaged: Packaged) -> None:
    name, model, tokenizer = packaged
    texts = pocket_texts(8)
    measured = measure(model, tokenizer, texts)
    expected = brute_force(model, tokenizer, texts)
    layers = {"smollm2_135m": 30, "gemma3_270m": 18}[name]
    assert set(expected) == set(ner(measured)) == {(i, kind) for i in range(layers) for kind in ("key", "value")}
    worst = max(abs(ner(measured)[place] - value) for place, value in expected.items())
    assert worst < 1e-6
    assert set(measured.layers["tokens"]) == {sum(len(tokenizer(text)["input_ids"]) for text in texts)}
    assert set(measured.layers["kv_dim"]) == {{"smollm2_135m": 192, "gemma3_270m": 256}[name]}


def test_batch_size_padding_and_order_do_not_matter_to_packaged_models(packaged: Packaged) -> None:
    _, model, tokenizer = packaged
    texts = pocket_texts(5)
    one = ner(measure(model, tokenizer, texts, batch_tokens=1))
    together = ner(measure(model, tokenizer, texts[::-1], batch_tokens=100_000))
    assert max(abs(one[place] - together[place]) for place in one) < 1e-6


def test_tiny_model_equals_a_hand_written_forward(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    measured = measure(tiny, tokenizer, TEXTS)
    passes = [hand_written.run(tiny, torch.tensor(tokenizer(text)["input_ids"])) for text in TEXTS]
    for layer in range(3):
        keys = torch.cat([done.keys["projection"][layer] for done in passes])
        values = torch.cat([done.values[layer] for done in passes])
        assert ner(measured)[layer, "key"] == pytest.approx(normalized_effective_rank(keys.numpy()), abs=1e-6)
        assert ner(measured)[layer, "value"] == pytest.approx(normalized_effective_rank(values.numpy()), abs=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 40, 90, 100_000])
def test_batches_of_any_size_give_the_same(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, batch_tokens: int
) -> None:
    alone = ner(measure(tiny, tokenizer, TEXTS, batch_tokens=1))
    measured = ner(measure(tiny, tokenizer, TEXTS[3:] + TEXTS[:3], batch_tokens=batch_tokens))
    assert max(abs(alone[place] - measured[place]) for place in alone) < 1e-6


def test_convergence_ends_with_the_final_value(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    measured = measure(tiny, tokenizer, TEXTS, batch_tokens=40)
    for (layer, kind), curve in measured.convergence.groupby(["layer", "kind"]):
        assert list(curve["tokens"]) == sorted(set(curve["tokens"]))
        assert len(curve) >= 3
        assert curve["ner"].iloc[-1] == pytest.approx(ner(measured)[layer, kind], abs=1e-12)
        assert curve["tokens"].iloc[-1] == measured.spectra[layer, kind].tokens


def test_long_texts_are_cut(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    assert set(measure(tiny, tokenizer, ["x" * 100, "y"], max_length=10).layers["tokens"]) == {11}
    assert set(measure(tiny, tokenizer, ["x" * 1000]).layers["tokens"]) == {512}  # the model's context


def test_the_model_is_left_as_it_was(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_llama()
    model.train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    measure(model, tokenizer, TEXTS)
    assert model.training
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_base_model_is_enough(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    assert ner(measure(tiny.model, tokenizer, TEXTS)) == ner(measure(tiny, tokenizer, TEXTS))


def test_bad_activations_stop_with_their_place(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    with torch.no_grad():
        tiny.model.layers[1].self_attn.v_proj.bias[3] = float("inf")
    with pytest.raises(UserError, match="values of layer 1 of the model: a NaN or an infinity"):
        measure(tiny, tokenizer, TEXTS)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_measure_is_refused(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> None:
    with pytest.raises(ValueError, match="none of these examples has a token"):
        measure(tiny, tokenizer, texts)


def test_one_string_is_not_a_list_of_texts(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="a sequence of strings"):
        measure(tiny, tokenizer, "one text")
