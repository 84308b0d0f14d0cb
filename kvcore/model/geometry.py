"""Where each model family keeps its keys and values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from kvcore.schema import SettingError, nearest

Kind = Literal["key", "value"]
KINDS: tuple[Kind, Kind] = ("key", "value")


class LayerKind(NamedTuple):
    """The keys, or the values, of one decoder layer."""

    layer: int
    kind: Kind


@dataclass(frozen=True)
class Family:
    """Where the decoder layers of a family have their parts; paths start at a layer.

    Attributes:
        attention: Path of the attention module.
        key: Path of the linear key projection.
        value: Path of the linear value projection. If it is that of the keys, the one layer puts out queries,
            keys and values side by side, in this order.
        key_norm: Path of the norm of the keys (QK-norm), if the family has one.
        norm_sees: Layout of what that norm is given: `length, heads` or `heads, length` as its middle dimensions.
    """

    attention: str = "self_attn"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    key_norm: str | None = None
    norm_sees: Literal["length, heads", "heads, length"] = "length, heads"


# By `config.model_type`: decoders that keep their layers in `layers`, whose keys and values are outputs of plain
# linear layers, the same in every layer, and whose attention hands both to the cache when the keys are rotated.
FAMILIES: dict[str, Family] = {
    "gemma": Family(),
    "gemma2": Family(),
    "gemma3_text": Family(key_norm="self_attn.k_norm", norm_sees="heads, length"),
    "llama": Family(),
    "mistral": Family(),
    "phi3": Family(key="self_attn.qkv_proj", value="self_attn.qkv_proj"),
    "qwen2": Family(),
    "qwen3": Family(key_norm="self_attn.k_norm"),
}


@dataclass(frozen=True)
class Projection:
    """Where the keys, or the values, of one decoder layer come from.

    Attributes:
        place: Index of the decoder layer, and `key` or `value`.
        linear: Its output holds them, all KV heads side by side, in the columns `outputs`.
        outputs: Columns of the output, which are rows of the weight.
        num_kv_heads: Number of KV heads.
        head_dim: Dimension of a head.
        attention: The attention module around it.
        key_norm: Norm of these keys; None for values and for families without one.
        norm_sees: Layout of what the norm is given.
    """

    place: LayerKind
    linear: nn.Linear
    outputs: slice
    num_kv_heads: int
    head_dim: int
    attention: nn.Module
    key_norm: nn.Module | None
    norm_sees: str

    @property
    def kv_dim(self) -> int:
        """Number of KV heads times their dimension."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class Geometry:
    """All key and value projections of a model, in the order in which a forward pass reaches them."""

    projections: tuple[Projection, ...]

    def __iter__(self) -> Iterator[Projection]:
        """Iterate over the projections."""
        return iter(self.projections)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return self.projections[-1].place.layer + 1

    @property
    def kv_dims(self) -> dict[LayerKind, int]:
        """kv_dim by layer and kind."""
        return {projection.place: projection.kv_dim for projection in self}

    @property
    def max_kv_dim(self) -> int:
        """The largest kv_dim of any layer and kind."""
        return max(projection.kv_dim for projection in self)


def check_family(config: PretrainedConfig) -> Family:
    """Return the family of a model.

    Raises:
        SettingError: The attention layout of this family is not known, or the weights are quantised.
    """
    model_type = config.model_type
    if getattr(config, "quantization_config", None) is not None:
        raise SettingError("model family", model_type, "its weights are quantised; dequantised ones are needed")
    if model_type not in FAMILIES:
        raise SettingError(
            "model family",
            model_type,
            f"its attention layout is not known ({nearest(model_type, list(FAMILIES))}); to support it, "
            "say in kvcore/model/geometry.py where its layers keep their key and value projections",
        )
    return FAMILIES[model_type]


def discover(model: PreTrainedModel) -> Geometry:
    """Find the key and value projections of a loaded model.

    Raises:
        SettingError: The family is not known, or the model is not laid out as its family is.
    """
    family = check_family(model.config)
    return Geometry(
        tuple(
            _projection(family, layer, LayerKind(index, kind), model.config)
            for index, layer in enumerate(model.base_model.get_submodule("layers").children())
            for kind in KINDS
        )
    )


def check_expected(geometry: Geometry, *, layers: int | None, kv_heads: int | None, head_dim: int | None) -> None:
    """Check that a model is the one its settings describe; None is not checked.

    Raises:
        SettingError: It has other dimensions.
    """
    found = {
        "layers": {geometry.num_layers},
        "kv_heads": {projection.num_kv_heads for projection in geometry},
        "head_dim": {projection.head_dim for projection in geometry},
    }
    for name, expected in (("layers", layers), ("kv_heads", kv_heads), ("head_dim", head_dim)):
        if expected is not None and found[name] != {expected}:
            loaded = " and ".join(map(str, sorted(found[name])))
            raise SettingError(f"model.expected.{name}", expected, f"the loaded model has {loaded}")


def _projection(family: Family, layer: nn.Module, place: LayerKind, config: PretrainedConfig) -> Projection:
    path = family.key if place.kind == "key" else family.value
    linear, attention = layer.get_submodule(path), layer.get_submodule(family.attention)
    if type(linear) is not nn.Linear or not linear.weight.is_floating_point():
        found = type(linear).__name__
        raise _unlike(config, f"its {path} is a {found}, and only plain linear layers can be truncated")
    head_dim = int(attention.head_dim)  # type: ignore[arg-type] # an attribute of every attention module
    query_dim, kv_dim = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    fused = family.key == family.value
    expected = query_dim + 2 * kv_dim if fused else kv_dim
    if linear.out_features != expected:
        heads = f"{config.num_key_value_heads} KV heads x {head_dim}"
        raise _unlike(config, f"its {path} has {linear.out_features} outputs where {heads} need {expected}")
    start = 0 if not fused else query_dim if place.kind == "key" else query_dim + kv_dim
    return Projection(
        place=place,
        linear=linear,
        outputs=slice(start, start + kv_dim),
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        attention=attention,
        key_norm=layer.get_submodule(family.key_norm) if family.key_norm and place.kind == "key" else None,
        norm_sees=family.norm_sees,
    )


def _unlike(config: PretrainedConfig, found: str) -> SettingError:
    return SettingError("model family", config.model_type, found)
