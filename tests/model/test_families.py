"""Every family, at the published shape ratios: capture and truncation against decoders written by hand."""

from typing import Any

import hand_written
import pytest
import torch
from conftest import TEXTS
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)

from kvcore import measure
from kvcore.capture import capture
from kvcore.compression.truncation import truncated
from kvcore.data.batches import make_batches
from kvcore.data.encoding import encode
from kvcore.data.examples import Example
from kvcore.evaluation.perplexity import measure_likelihoods
from kvcore.model.geometry import FAMILIES, LayerKind, discover
from kvcore.model.taps import Point, tap
from kvcore.spectrum.tables import Spectra

POINTS: list[Point] = ["projection", "normed", "rotary"]
SHARED: dict[str, Any] = {
    "vocab_size": 258, "intermediate_size": 40, "num_hidden_layers": 3, "max_position_embeddings": 256,
    "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 0,
}  # fmt: skip
# Heads per KV head, head_dim * heads / hidden_size, norms, biases and fused layers are the published ones.
CONFIGS: dict[str, PretrainedConfig] = {
    "qwen3 4b": Qwen3Config(
        **SHARED, hidden_size=40, num_attention_heads=8, num_key_value_heads=2, head_dim=8, attention_bias=False
    ),
    "qwen3 8b": Qwen3Config(**SHARED, hidden_size=32, num_attention_heads=8, num_key_value_heads=2, head_dim=4),
    "gemma 2b": GemmaConfig(**SHARED, hidden_size=32, num_attention_heads=4, num_key_value_heads=1, head_dim=8),
    "gemma 7b": GemmaConfig(**SHARED, hidden_size=24, num_attention_heads=4, num_key_value_heads=4, head_dim=8),
    "mistral 7b": MistralConfig(
        **SHARED, hidden_size=32, num_attention_heads=8, num_key_value_heads=2, head_dim=4, sliding_window=9
    ),
    "phi3 mini": Phi3Config(
        **SHARED, hidden_size=24, num_attention_heads=4, num_key_value_heads=4, sliding_window=11
    ),
    "llama2 7b": LlamaConfig(**SHARED, hidden_size=32, num_attention_heads=4, num_key_value_heads=4),
    "llama biased": LlamaConfig(
        **SHARED, hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=True
    ),
    "qwen2": Qwen2Config(**SHARED, hidden_size=32, num_attention_heads=4, num_key_value_heads=2),
    "gemma2": Gemma2Config(
        **SHARED, hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=7,
        query_pre_attn_scalar=12, attn_implementation="eager",
    ),
    "gemma3": Gemma3TextConfig(
        **SHARED, hidden_size=24, num_attention_heads=4, num_key_value_heads=1, head_dim=8, sliding_window=7,
        query_pre_attn_scalar=12, layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
}  # fmt: skip


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(7)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.25)
    return model


@pytest.fixture
def token_ids(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    return torch.tensor(tokenizer(TEXTS[4] + TEXTS[0] + TEXTS[1])["input_ids"])


@pytest.fixture(params=POINTS)
def point(request: pytest.FixtureRequest) -> Point:
    return request.param  # type: ignore[no-any-return]


def logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens[None]).logits[0].double()


def spectra_at(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, point: Point) -> Spectra:
    return measure(model, tokenizer, TEXTS, point=point).spectra


def test_every_family_is_here() -> None:
    assert {config.model_type for config in CONFIGS.values()} == set(FAMILIES)


def test_the_hand_written_decoder_is_the_model(model: PreTrainedModel, token_ids: Tensor) -> None:
    assert torch.allclose(hand_written.run(model, token_ids).logits, logits(model, token_ids), atol=1e-4)


def test_captured_keys_and_values(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, point: Point) -> None:
    (batch,) = make_batches(encode([Example(text) for text in TEXTS], tokenizer), batch_tokens=100_000)
    seen: dict[LayerKind, Tensor] = {}
    with capture(model, discover(model), seen.__setitem__, point=point, skip_first_tokens=2) as run:
        run(batch)
    passes = [hand_written.run(model, row[mask]) for row, mask in zip(batch.tokens, batch.mask, strict=True)]
    for layer in range(3):
        keys = torch.cat([done.keys[point][layer][2:] for done in passes])
        values = torch.cat([done.values[layer][2:] for done in passes])
        assert torch.allclose(seen[LayerKind(layer, "key")].double(), keys, atol=1e-4)
        assert torch.allclose(seen[LayerKind(layer, "value")].double(), values, atol=1e-4)
    assert len(seen) == 6


@pytest.mark.parametrize("ratio", [0.25, 0.6])
def test_truncated_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_ids: Tensor, point: Point, ratio: float
) -> None:
    spectra = spectra_at(model, tokenizer, point)
    ranks = {place: max(1, int(ratio * spectrum.kv_dim)) for place, spectrum in spectra.items()}
    bases = {place: spectra[place].right_singular_vectors[:, :rank] for place, rank in ranks.items()}
    projectors = {place: basis @ basis.T for place, basis in bases.items()}
    expected = hand_written.run(model, token_ids, projectors, point).logits
    before = logits(model, token_ids)
    with truncated(discover(model), spectra, ranks, point=point):
        assert torch.allclose(logits(model, token_ids), expected, atol=1e-4)
    assert (before - expected).abs().max() > 5e-4
    assert torch.equal(logits(model, token_ids), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_full_rank_changes_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_ids: Tensor, point: Point
) -> None:
    spectra = spectra_at(model, tokenizer, point)
    before = logits(model, token_ids)
    with truncated(discover(model), spectra, {p: s.kv_dim for p, s in spectra.items()}, point=point):
        assert torch.allclose(logits(model, token_ids), before, atol=1e-4)


def test_cached_generation_equals_uncached_forward_passes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_ids: Tensor, point: Point
) -> None:
    spectra = spectra_at(model, tokenizer, point)
    with truncated(discover(model), spectra, {p: max(1, s.kv_dim // 2) for p, s in spectra.items()}, point=point):
        generated = model.generate(
            token_ids[None], attention_mask=torch.ones_like(token_ids[None]), max_new_tokens=12, do_sample=False,
            eos_token_id=None, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        everything = generated.sequences[0]
        uncached = logits(model, everything[:-1])[len(token_ids) - 1 :]
    cached = torch.cat(generated.logits).double()
    assert torch.allclose(cached, uncached, atol=1e-4)
    assert torch.equal(uncached.argmax(-1), everything[len(token_ids) :])


def test_likelihood_uses_the_whole_output_head(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode([Example(text) for text in TEXTS], tokenizer)
    expected = 0.0
    for example in encoded:
        log_probability = hand_written.run(model, example.tokens).logits.log_softmax(-1)
        expected -= float(log_probability[:-1].gather(1, example.tokens[1:, None].long()).sum())
    assert measure_likelihoods(model, make_batches(encoded, batch_tokens=300)).total_nll == pytest.approx(
        expected, rel=1e-5
    )


def test_a_tap_replaces_what_the_model_goes_on_with(model: PreTrainedModel, token_ids: Tensor, point: Point) -> None:
    """Doubling every key doubles the scores, which a hand-written projector of 2 I does as well."""
    geometry = discover(model)
    doubled = {
        (place.layer, place.kind): 2 * torch.eye(projection.kv_dim, dtype=torch.float64)
        for projection in geometry
        if (place := projection.place).kind == "key"
    }
    expected = hand_written.run(model, token_ids, doubled, point).logits
    handles = [tap(found, point, lambda rows: 2 * rows) for found in geometry if found.place.kind == "key"]
    found = logits(model, token_ids)
    for handle in handles:
        handle.remove()
    assert torch.allclose(found, expected, atol=1e-4)
