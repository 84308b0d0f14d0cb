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
    """Where the decoder of a family has its parts.

    Attributes:
        layers: Path of the list of decoder layers, from the base model.
        key: Path of the linear key projection, from a layer.
        value: Path of the linear value projection, from a layer.
    """

    layers: str = "layers"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"


# By `config.model_type`. Only causal decoders whose keys and values are outputs of linear layers of their own.
FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "gemma3_text": Family(),
}


@dataclass(frozen=True)
class Projection:
    """The linear layer whose outputs are the keys, or the values, of one decoder layer.

    Attributes:
        place: Index of the decoder layer, and `key` or `value`.
        linear: Its output is (..., kv_dim), all KV heads side by side.
    """

    place: LayerKind
    linear: nn.Linear

    @property
    def kv_dim(self) -> int:
        """Number of KV heads times their dimension."""
        return self.linear.out_features


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


def check_family(config: PretrainedConfig) -> Family:
    """Return the family of a model.

    Raises:
        SettingError: The attention layout of this family is not known.
    """
    model_type = config.model_type
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
    decoder = model.base_model
    projections = []
    for index, layer in enumerate(decoder.get_submodule(family.layers).children()):
        projections += [
            Projection(LayerKind(index, "key"), _linear(layer, family.key, model.config)),
            Projection(LayerKind(index, "value"), _linear(layer, family.value, model.config)),
        ]
    return Geometry(tuple(projections))


def _linear(layer: nn.Module, path: str, config: PretrainedConfig) -> nn.Linear:
    module = layer.get_submodule(path)
    if type(module) is not nn.Linear or not module.weight.is_floating_point():
        found = type(module).__name__
        raise SettingError(
            "model family",
            config.model_type,
            f"its {path} is a {found}, and only plain linear layers can be truncated",
        )
    expected = config.num_key_value_heads * config.head_dim
    if module.out_features != expected:
        raise SettingError(
            "model family",
            config.model_type,
            f"its {path} has {module.out_features} outputs where {config.num_key_value_heads} KV heads "
            f"x {config.head_dim} = {expected} were expected",
        )
    return module
