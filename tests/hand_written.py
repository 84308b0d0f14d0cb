"""Decoders of every supported family written by hand in float64, one sequence at a time, to compare with."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

Places = dict[tuple[int, str], Tensor]


@dataclass
class Pass:
    """What one forward pass computed; keys by point and layer, values by layer, each (length, kv_dim)."""

    logits: Tensor
    keys: dict[str, list[Tensor]] = field(default_factory=lambda: {"projection": [], "normed": [], "rotary": []})
    values: list[Tensor] = field(default_factory=list)


def rotate(heads: Tensor, base: float) -> Tensor:
    """Rotary position embedding; heads: (length, num_heads, head_dim)."""
    length, _, head_dim = heads.shape
    half = head_dim // 2
    frequencies = base ** (-torch.arange(half, dtype=torch.float64) * 2 / head_dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class Decoder:
    """A model's weights in float64 and the arithmetic of its family."""

    def __init__(self, model: PreTrainedModel) -> None:  # noqa: D107
        self.config = model.config
        self.weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
        self.weights.setdefault("lm_head.weight", self.weights["model.embed_tokens.weight"])
        self.gemma = self.config.model_type.startswith("gemma")
        self.sandwich = self.config.model_type in {"gemma2", "gemma3_text"}  # norms before and after each part
        self.head_dim = getattr(self.config, "head_dim", None) or (
            self.config.hidden_size // self.config.num_attention_heads
        )

    def linear(self, rows: Tensor, name: str) -> Tensor:
        return rows @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0)

    def norm(self, rows: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"] + (1 if self.gemma else 0)
        return rows / torch.sqrt((rows * rows).mean(-1, keepdim=True) + self.config.rms_norm_eps) * weight

    def queries_keys_values(self, rows: Tensor, prefix: str) -> tuple[Tensor, ...]:
        if f"{prefix}.qkv_proj.weight" not in self.weights:
            return tuple(self.linear(rows, f"{prefix}.{kind}_proj") for kind in "qkv")
        query_dim = self.config.num_attention_heads * self.head_dim
        kv_dim = self.config.num_key_value_heads * self.head_dim
        return tuple(self.linear(rows, f"{prefix}.qkv_proj").split([query_dim, kv_dim, kv_dim], dim=-1))

    def feed_forward(self, rows: Tensor, prefix: str) -> Tensor:
        if f"{prefix}.gate_up_proj.weight" in self.weights:
            gate, up = self.linear(rows, f"{prefix}.gate_up_proj").chunk(2, dim=-1)
        else:
            gate, up = self.linear(rows, f"{prefix}.gate_proj"), self.linear(rows, f"{prefix}.up_proj")
        gate = functional.gelu(gate, approximate="tanh") if self.gemma else functional.silu(gate)
        return self.linear(gate * up, f"{prefix}.down_proj")

    def rotary_base(self, layer: int) -> float:
        parameters = self.config.rope_parameters
        if "rope_theta" not in parameters:  # by layer type
            parameters = parameters[self.config.layer_types[layer]]
        return float(parameters["rope_theta"])

    def visible(self, length: int, layer: int) -> Tensor:
        distance = torch.arange(length)[:, None] - torch.arange(length)
        types = getattr(self.config, "layer_types", None)
        window = getattr(self.config, "sliding_window", None)
        slides = window is not None and (types is None or types[layer] == "sliding_attention")
        return (distance >= 0) & (distance < window) if slides else distance >= 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """Attention over (length, num_heads, head_dim)."""
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scale = getattr(self.config, "query_pre_attn_scalar", None) or self.head_dim
        scores = torch.einsum("qhd,khd->hqk", query, key) / scale**0.5
        cap = getattr(self.config, "attn_logit_softcapping", None)
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        scores = scores.masked_fill(~self.visible(len(query), layer), -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).flatten(1)

    def run(self, tokens: Tensor, projectors: Places | None = None, point: str = "projection") -> Pass:
        """Run one sequence; keys at `point` and values are multiplied by `projectors[layer, kind]` if given."""
        projectors, done = projectors or {}, Pass(torch.empty(0))

        def project(rows: Tensor, layer: int, kind: str, here: str) -> Tensor:
            return rows @ projectors[layer, kind] if here == point and (layer, kind) in projectors else rows

        hidden = self.weights["model.embed_tokens.weight"][tokens]
        if self.gemma:
            hidden = hidden * self.config.hidden_size**0.5
        for layer in range(self.config.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            normed = self.norm(hidden, f"{prefix}.input_layernorm")
            query, key, value = self.queries_keys_values(normed, f"{prefix}.self_attn")
            done.keys["projection"].append(key)
            done.values.append(value)
            key = project(key, layer, "key", "projection")
            value = project(value, layer, "value", point)
            query, key = (rows.unflatten(-1, (-1, self.head_dim)) for rows in (query, key))
            if f"{prefix}.self_attn.k_norm.weight" in self.weights:
                query = self.norm(query, f"{prefix}.self_attn.q_norm")
                key = self.norm(key, f"{prefix}.self_attn.k_norm")
            done.keys["normed"].append(key.flatten(1))
            key = project(key.flatten(1), layer, "key", "normed").view(key.shape)
            query, key = rotate(query, self.rotary_base(layer)), rotate(key, self.rotary_base(layer))
            done.keys["rotary"].append(key.flatten(1))
            key = project(key.flatten(1), layer, "key", "rotary").view(key.shape)
            attended = self.attend(query, key, value.unflatten(-1, (-1, self.head_dim)), layer)
            attended = self.linear(attended, f"{prefix}.self_attn.o_proj")
            if self.sandwich:
                hidden = hidden + self.norm(attended, f"{prefix}.post_attention_layernorm")
                changed = self.feed_forward(self.norm(hidden, f"{prefix}.pre_feedforward_layernorm"), f"{prefix}.mlp")
                hidden = hidden + self.norm(changed, f"{prefix}.post_feedforward_layernorm")
            else:
                hidden = hidden + attended
                normed = self.norm(hidden, f"{prefix}.post_attention_layernorm")
                hidden = hidden + self.feed_forward(normed, f"{prefix}.mlp")
        done.logits = self.linear(self.norm(hidden, "model.norm"), "lm_head")
        cap = getattr(self.config, "final_logit_softcapping", None)
        if cap is not None:
            done.logits = torch.tanh(done.logits / cap) * cap
        return done


def run(model: PreTrainedModel, tokens: Tensor, projectors: Places | None = None, point: str = "projection") -> Pass:
    return Decoder(model).run(tokens, projectors, point)
