"""Uniform: one ratio in all layers; for keys and values together, or for each of both."""

from collections.abc import Mapping

from kvcore.compression.allocation import KvDims, rank_at_ratio, spend_within
from kvcore.model.geometry import Kind, LayerKind


def ranks_at_ratios(kv_dims: KvDims, ratios: Mapping[Kind, float]) -> dict[LayerKind, int]:
    """Return the ranks for one ratio in all layers, keys and values apart.

    Args:
        kv_dims: kv_dim by layer and kind.
        ratios: Rank ratio of the keys and of the values, in (0, 1].
    """
    return {place: rank_at_ratio(ratios[place.kind], kv_dim) for place, kv_dim in kv_dims.items()}


def uniform_ranks(kv_dims: KvDims, budget: float) -> dict[LayerKind, int]:
    """Return the ranks for one ratio of everything, to within the one rank that makes the budget exact.

    Raises:
        SettingError: The budget is not enough for one rank in each layer and kind.
    """
    evenly = {place: [-rank / kv_dim for rank in range(1, kv_dim + 1)] for place, kv_dim in kv_dims.items()}
    return spend_within(kv_dims, evenly, budget)
