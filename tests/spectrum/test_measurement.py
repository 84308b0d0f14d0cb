"""Measured spectra against brute force: all keys and values at once, in float64, captured another way."""

import subprocess
import sys
from pathlib import Path

import hand_written
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, TEXTS, Packaged, tiny_llama
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from kvcore import measure
from kvcore.data.batches import Batch, doubling_stretches, make_batches
from kvcore.data.encoding import encode
from kvcore.data.examples import Example
from kvcore.data.sources import find_data, read_rows
from kvcore.model.geometry import discover
from kvcore.schema import UserError
from kvcore.spectrum import measurement
from kvcore.spectrum.measurement import Checkpoints, Measurement, measure_batches


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
    with pytest.raises(UserError, match="values of layer 1 of the model: a NaN or an infinity in batch 0, example 0, "):
        measure(tiny, tokenizer, TEXTS)


def test_one_bad_token_is_named_by_batch_example_and_place(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The token "!" occurs once: at place 4 of the eleventh text."""
    with torch.no_grad():
        tiny.model.embed_tokens.weight[tokenizer("!")["input_ids"][0]] = float("nan")
    texts = [*TEXTS, "Hail.", "Snow.", "Halt! Who?", "Fog."]
    with pytest.raises(UserError, match=r"keys of layer 0 of the model: .* example 10, token 4 \(counted from 0"):
        measure(tiny, tokenizer, texts, batch_tokens=64)
    with pytest.raises(UserError, match=r"example 10, token 4 "):
        measure(tiny, tokenizer, texts, batch_tokens=64, skip_first_tokens=3)


def batches_of(tokenizer: PreTrainedTokenizerBase) -> list[list[Batch]]:
    encoded = encode([Example(text) for text in TEXTS], tokenizer)
    return [make_batches(stretch, batch_tokens=40) for stretch in doubling_stretches(encoded, first_tokens=16)]


def checkpoints(folder: Path, content: dict[str, object] | None = None) -> tuple[Checkpoints, list[str]]:
    said: list[str] = []
    return Checkpoints(folder, content or {"seed": 0}, 0.0, said.append), said


@pytest.mark.parametrize("precision", ["standard", "exact"])
@pytest.mark.parametrize("after", [1, 3, 5])
def test_interrupted_work_is_gone_on_with(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, after: int, precision: str
) -> None:
    batches, geometry = batches_of(tokenizer), discover(tiny)
    undisturbed = measure_batches(tiny, geometry, batches, precision=precision)
    seen: list[int] = []

    def interrupt(tokens: int) -> None:
        seen.append(tokens)
        if len(seen) == after + 1:
            raise KeyboardInterrupt

    kept, _ = checkpoints(tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        measure_batches(tiny, geometry, batches, interrupt, precision=precision, checkpoints=kept)
    ran: list[int] = []
    hook = tiny.model.embed_tokens.register_forward_hook(lambda _, inputs, __: ran.append(len(inputs[0])))
    kept, said = checkpoints(tmp_path / "kept")
    resumed = measure_batches(tiny, geometry, batches, precision=precision, checkpoints=kept)
    hook.remove()
    assert len(ran) == sum(map(len, batches)) - (after + 1)
    assert said == [f"going on after {after + 1} batches, kept in {tmp_path / 'kept' / '0-of-1-process-0-of-1'}"]
    pd.testing.assert_frame_equal(resumed.layers, undisturbed.layers, rtol=1e-12)
    pd.testing.assert_frame_equal(resumed.convergence, undisturbed.convergence, rtol=1e-12)
    kept.remove()
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("change", ["settings", "damage"])
def test_work_that_cannot_be_gone_on_with_is_begun_anew(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, change: str
) -> None:
    batches, geometry = batches_of(tokenizer), discover(tiny)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_batches(tiny, geometry, batches, interrupt, checkpoints=checkpoints(tmp_path / "kept")[0])
    if change == "damage":
        (state,) = tmp_path.rglob("*.safetensors")
        state.write_bytes(state.read_bytes()[:-1])
    kept, said = checkpoints(tmp_path / "kept", {"seed": 0 if change == "damage" else 1})
    resumed = measure_batches(tiny, geometry, batches, checkpoints=kept)
    assert said[0].startswith("starting anew: the state in ")
    pd.testing.assert_frame_equal(resumed.layers, measure_batches(tiny, geometry, batches).layers, check_exact=True)


def test_layers_that_do_not_fit_together_are_measured_one_group_after_another(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    batches, geometry = batches_of(tokenizer), discover(tiny)
    together = measure_batches(tiny, geometry, batches)
    layer_bytes = 2 * 8 * 16**2
    monkeypatch.setattr(measurement, "free_bytes", lambda _: 2.5 * layer_bytes / 0.7)
    kept, said = checkpoints(tmp_path / "kept")
    apart = measure_batches(tiny, geometry, batches, checkpoints=kept)
    assert said == ["the accumulators of all layers do not fit: 2 passes, some layers at a time"]
    monkeypatch.setattr(measurement, "free_bytes", lambda _: 8.5 * layer_bytes / 0.7)
    kept, said = checkpoints(tmp_path / "kept")
    exact = measure_batches(tiny, geometry, batches, precision="exact", checkpoints=kept)
    assert "3 passes" in said[0]  # a triangle needs more room
    pd.testing.assert_frame_equal(exact.layers, together.layers, rtol=1e-6)
    pd.testing.assert_frame_equal(apart.layers, together.layers, check_exact=True)
    pd.testing.assert_frame_equal(apart.convergence, together.convergence, check_exact=True)
    pd.testing.assert_frame_equal(apart.heads, together.heads, check_exact=True)
    monkeypatch.setattr(measurement, "free_bytes", lambda _: layer_bytes)
    with pytest.raises(UserError, match="layer 0 needs 0.0 GB for its accumulators, and cpu has room for 0.0 GB"):
        measure_batches(tiny, geometry, batches)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_measure_is_refused(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> None:
    with pytest.raises(ValueError, match="none of these examples has a token"):
        measure(tiny, tokenizer, texts)


def test_one_string_is_not_a_list_of_texts(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="a sequence of strings"):
        measure(tiny, tokenizer, "one text")


MEMORY = """
import resource, sys, torch
sys.path.insert(0, {tests!r})
from conftest import tiny_llama
from kvcore.data.batches import doubling_stretches, make_batches
from kvcore.data.encoding import EncodedExample
from kvcore.model.geometry import discover
from kvcore.spectrum.measurement import measure_batches

model = tiny_llama(num_key_value_heads=4, head_dim=32, hidden_size=32)
places = torch.arange(100, dtype=torch.int32)
encoded = [
    EncodedExample(torch.randint(256, (100,), dtype=torch.int32), places, places + 1, 0, 0, 100)
    for _ in range({tokens} // 100)
]
stretches = [make_batches(stretch, batch_tokens=4000) for stretch in doubling_stretches(encoded, first_tokens=128)]
measured = measure_batches(model, discover(model), stretches)
assert set(measured.layers["tokens"]) == {{{tokens}}}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data() -> None:
    """Peak memory of a process that sees a million tokens, against one that sees ten thousand."""
    peaks = []
    for tokens in (10_000, 1_000_000):
        code = MEMORY.format(tests=str(REPOSITORY / "tests"), tokens=tokens)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=170)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.05 * peaks[0]
