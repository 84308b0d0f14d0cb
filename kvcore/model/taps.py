"""Taps: read, or replace, the keys or values of a layer at a point of the forward pass."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kvcore.model.geometry import Projection

Point = Literal["projection", "normed", "rotary"]
Transform = Callable[[Tensor], Tensor | None]


def reached_by_projection(projection: Projection, point: Point) -> bool:
    """Say whether what is found at the point is the output of the projection itself.

    Values are neither normed nor rotated in any known family, and keys only where the family has a QK-norm.
    """
    if projection.place.kind == "value" or point == "projection":
        return True
    return point == "normed" and projection.key_norm is None


def tap(projection: Projection, point: Point, transform: Transform) -> RemovableHandle:
    """Call `transform` with the keys or values of every forward pass, until the handle is removed.

    Args:
        projection: Which keys or values.
        point: `projection`: as projected, bias included. `normed`: after the QK-norm, where there is one.
            `rotary`: as the cache stores them.
        transform: Given (batch, length, kv_dim); what it returns takes their place, unless it returns None.
    """
    if reached_by_projection(projection, point):
        return projection.linear.register_forward_hook(_at_projection(projection.outputs, transform))
    if point == "normed" and projection.key_norm is not None:
        return projection.key_norm.register_forward_hook(_at_norm(projection.norm_sees, transform))
    return projection.attention.register_forward_pre_hook(_at_cache(transform), with_kwargs=True)


def _at_projection(outputs: slice, transform: Transform) -> Callable[..., Tensor | None]:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        changed = transform(output[..., outputs])
        if changed is None:
            return None
        output = output.clone()
        output[..., outputs] = changed
        return output

    return hook


def _at_norm(norm_sees: str, transform: Transform) -> Callable[..., Tensor | None]:
    def by_token(heads: Tensor) -> Tensor:
        return heads.transpose(1, 2) if norm_sees == "heads, length" else heads

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        heads = by_token(output)  # (batch, length, num_kv_heads, head_dim)
        changed = transform(heads.flatten(2))
        return None if changed is None else by_token(changed.view(heads.shape))

    return hook


def _at_cache(transform: Transform) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def hook(_module: nn.Module, inputs: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
        return inputs, settings | {"past_key_values": _TappedCache(settings.get("past_key_values"), transform)}

    return hook


class _TappedCache:
    """Stands in front of a layer's cache, or of none, where attention hands over its rotated keys."""

    def __init__(self, cache: Any, transform: Transform) -> None:  # noqa: ANN401 - any cache of transformers
        self._cache = cache
        self._transform = transform

    def update(self, keys: Tensor, values: Tensor, *place: Any, **settings: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Pass on (batch, num_kv_heads, length, head_dim) keys and values, and return what attention is to see."""
        heads = keys.transpose(1, 2)
        changed = self._transform(heads.flatten(2))
        if changed is not None:
            keys = changed.view(heads.shape).transpose(1, 2)
        if self._cache is None:
            return keys, values
        updated: tuple[Tensor, Tensor] = self._cache.update(keys, values, *place, **settings)
        return updated
