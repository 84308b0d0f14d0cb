"""Rank allocation: from a budget to the rank of each layer."""

import math
from collections.abc import Mapping

from kvcore.model.geometry import Kind, LayerKind
from kvcore.spectrum.tables import Spectra

Ranks = Mapping[LayerKind, int]


def rank_at_ratio(ratio: float, kv_dim: int) -> int:
    """Return the rank for a rank ratio: rounded half up, at least 1 and at most `kv_dim`.

    Args:
        ratio: Rank over `kv_dim`, in (0, 1].
        kv_dim: Columns of the keys or values.

    Raises:
        ValueError: The ratio is outside (0, 1].
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio = {ratio!r}: allowed are numbers above 0, up to 1")
    return min(max(math.floor(ratio * kv_dim + 0.5), 1), kv_dim)


def uniform_ranks(spectra: Spectra, ratios: Mapping[Kind, float]) -> dict[LayerKind, int]:
    """Return the ranks for one ratio in all layers, keys and values apart.

    Args:
        spectra: Spectrum by layer and kind.
        ratios: Rank ratio of the keys and of the values, in (0, 1].

    Returns:
        Rank by layer and kind; a kind with ratio 1 is left out, for it is not truncated.
    """
    return {
        place: rank_at_ratio(ratios[place.kind], spectrum.kv_dim)
        for place, spectrum in spectra.items()
        if ratios[place.kind] != 1
    }
