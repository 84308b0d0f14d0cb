"""Where keys and values are, and what is refused."""

import pytest
import torch
from conftest import Packaged, tiny_llama
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from kvcore.model.geometry import discover
from kvcore.schema import SettingError


def test_projections_of_the_packaged_models(packaged: Packaged) -> None:
    name, model, _ = packaged
    geometry = discover(model)
    layers, kv_dim = {"smollm2_135m": (30, 3 * 64), "gemma3_270m": (18, 256)}[name]
    assert [projection.place for projection in geometry] == [
        (layer, kind) for layer in range(layers) for kind in ("key", "value")
    ]
    assert {projection.kv_dim for projection in geometry} == {kv_dim}
    last = model.base_model.layers[-1].self_attn
    assert [projection.linear for projection in geometry][-2:] == [last.k_proj, last.v_proj]


def test_unknown_family_is_refused_by_name_with_what_to_do() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20))
    with pytest.raises(SettingError, match=r"'gpt2': its attention layout is not known.*geometry.py"):
        discover(model)


def test_a_replaced_projection_is_refused() -> None:
    model = tiny_llama()
    model.model.layers[1].self_attn.k_proj = nn.Sequential(nn.Linear(24, 16))
    with pytest.raises(SettingError, match=r"self_attn.k_proj is a Sequential"):
        discover(model)


def test_a_layout_unlike_the_configuration_is_refused() -> None:
    model = tiny_llama()
    model.model.layers[2].self_attn.v_proj = nn.Linear(24, 12)
    with pytest.raises(SettingError, match=r"12 outputs where 2 KV heads x 8 need 16"):
        discover(model)


def test_integer_weights_are_refused() -> None:
    model = tiny_llama()
    linear = model.model.layers[0].self_attn.k_proj
    linear.weight = nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(SettingError, match="only plain linear layers"):
        discover(model)


def test_quantised_weights_are_refused() -> None:
    model = tiny_llama()
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(SettingError, match="'llama': its weights are quantised"):
        discover(model)
