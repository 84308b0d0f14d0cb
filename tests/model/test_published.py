"""The seven published models: their configurations resolve and fit the real shapes, built without memory."""

from typing import Any

import pytest
import torch
from conftest import composed
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from kvcore.model.geometry import check_expected, discover
from kvcore.schema import ModelSettings, SettingError, parse_settings

# As each model's own config.json is publicly documented, with its published number of parameters.
PUBLISHED: dict[str, tuple[PretrainedConfig, float]] = {
    "qwen3_4b": (
        Qwen3Config(
            vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=True,
        ),
        4.02e9,
    ),
    "qwen3_8b": (
        Qwen3Config(
            vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=False,
        ),
        8.19e9,
    ),
    "gemma_2b": (
        GemmaConfig(
            vocab_size=256000, hidden_size=2048, intermediate_size=16384, num_hidden_layers=18, num_attention_heads=8,
            num_key_value_heads=1, head_dim=256, max_position_embeddings=8192,
        ),
        2.51e9,
    ),
    "gemma_7b": (
        GemmaConfig(
            vocab_size=256000, hidden_size=3072, intermediate_size=24576, num_hidden_layers=28, num_attention_heads=16,
            num_key_value_heads=16, head_dim=256, max_position_embeddings=8192,
        ),
        8.54e9,
    ),
    "mistral_7b": (
        MistralConfig(
            vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=8, max_position_embeddings=32768, sliding_window=4096,
        ),
        7.24e9,
    ),
    "phi3_mini": (
        Phi3Config(
            vocab_size=32064, hidden_size=3072, intermediate_size=8192, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=32, max_position_embeddings=4096, sliding_window=2047,
        ),
        3.82e9,
    ),
    "llama2_7b": (
        LlamaConfig(
            vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=32, max_position_embeddings=4096,
        ),
        6.74e9,
    ),
}  # fmt: skip


@pytest.fixture(params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> tuple[ModelSettings, PreTrainedModel, float]:
    config, parameters = PUBLISHED[request.param]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return parse_settings(composed(f"model={request.param}")).model, model, parameters


def test_shapes_are_those_the_configuration_expects(published: tuple[ModelSettings, PreTrainedModel, float]) -> None:
    settings, model, parameters = published
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=2e-3)
    geometry = discover(model)
    expected: dict[str, Any] = dict(settings.expected)
    assert None not in expected.values()
    check_expected(geometry, **expected)
    assert settings.context == model.config.max_position_embeddings
    for projection in geometry:
        columns = range(projection.linear.out_features)[projection.outputs]
        assert len(columns) == projection.kv_dim == expected["kv_heads"] * expected["head_dim"]
    for name in expected:
        with pytest.raises(SettingError, match=rf"model.expected.{name} = {expected[name] + 1}: the loaded model has"):
            check_expected(geometry, **expected | {name: expected[name] + 1})


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_pinned(name: str) -> None:
    settings = parse_settings(composed(f"model={name}")).model
    assert settings.source == "hub"
    assert len(settings.revision) == 40
    assert settings.gated == (name.partition("_")[0] in {"gemma", "llama2"})
    assert settings.dtype != "float32"
