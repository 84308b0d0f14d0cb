"""A Llama forward pass written by hand in float64, to compare the framework with."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LlamaForCausalLM


@dataclass
class Pass:
    """What one forward pass computed."""

    logits: Tensor
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


def rms_norm(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return rows / torch.sqrt((rows * rows).mean(-1, keepdim=True) + epsilon) * weight


def rotate(heads: Tensor, base: float) -> Tensor:
    """Rotary position embedding; heads: (length, num_heads, head_dim)."""
    length, _, head_dim = heads.shape
    half = head_dim // 2
    frequencies = base ** (-torch.arange(half, dtype=torch.float64) * 2 / head_dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def llama(model: LlamaForCausalLM, tokens: Tensor, projectors: dict[tuple[int, str], Tensor] | None = None) -> Pass:
    """Run one sequence; keys and values are multiplied by `projectors[layer, kind]`, (kv_dim, kv_dim), if given."""
    config = model.config
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    groups = config.num_attention_heads // config.num_key_value_heads
    length, head_dim = len(tokens), config.head_dim
    future = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)
    hidden = weights["model.embed_tokens.weight"][tokens]
    done = Pass(torch.empty(0))
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."

        def linear(rows: Tensor, name: str, prefix: str = prefix) -> Tensor:
            return rows @ weights[f"{prefix}{name}.weight"].T + weights.get(f"{prefix}{name}.bias", 0)

        normed = rms_norm(hidden, weights[f"{prefix}input_layernorm.weight"], config.rms_norm_eps)
        query, key, value = (linear(normed, f"self_attn.{kind}_proj") for kind in "qkv")
        done.keys.append(key)
        done.values.append(value)
        if projectors:
            key = key @ projectors.get((layer, "key"), torch.eye(key.shape[1], dtype=torch.float64))
            value = value @ projectors.get((layer, "value"), torch.eye(value.shape[1], dtype=torch.float64))
        base = config.rope_parameters["rope_theta"]
        query = rotate(query.view(length, -1, head_dim), base)
        key = rotate(key.view(length, -1, head_dim), base).repeat_interleave(groups, dim=1)
        value = value.view(length, -1, head_dim).repeat_interleave(groups, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query, key) / head_dim**0.5 + future
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).reshape(length, -1)
        hidden = hidden + linear(attended, "self_attn.o_proj")
        normed = rms_norm(hidden, weights[f"{prefix}post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = torch.nn.functional.silu(linear(normed, "mlp.gate_proj"))
        hidden = hidden + linear(gate * linear(normed, "mlp.up_proj"), "mlp.down_proj")
    done.logits = rms_norm(hidden, weights["model.norm.weight"], config.rms_norm_eps) @ weights["lm_head.weight"].T
    return done
