"""Waterfill: the ranks that lose the least summed relative tail energy within a global budget."""

from typing import Literal

import torch
from torch import Tensor

from kvcore.compression.allocation import spend_within
from kvcore.model.geometry import LayerKind
from kvcore.spectrum.streaming import Spectrum
from kvcore.spectrum.tables import Spectra, kv_dims


def waterfill_ranks(
    spectra: Spectra, budget: float, *, floor: float = 0.0, kind: Literal["pooled", "apart"] = "pooled"
) -> dict[LayerKind, int]:
    """Return the ranks r that minimise sum_l sum_{j > r_l} sigma_lj^2 / sum_j sigma_lj^2.

    A rank more in layer l gains sigma_lj^2 / sum_j sigma_lj^2 for the next j, and singular values descend, so the
    gains of a layer fall: taking the largest gain that is open, again and again, is optimal, as the argument at
    `kvcore.compression.allocation.spend` shows.

    Args:
        spectra: Spectrum by layer and kind.
        budget: Share of the full cache to spend, in (0, 1].
        floor: Share of its kv_dim that every layer and kind gets in any case.
        kind: `pooled`: one budget for keys and values; `apart`: the same share for the keys and for the values.

    Raises:
        SettingError: The budget is not enough for one rank, or for the floor, in each layer and kind.
    """
    gains = {place: relative_energy(spectrum).tolist() for place, spectrum in spectra.items()}
    return spend_within(kv_dims(spectra), gains, budget, floor=floor, kind=kind)


def relative_energy(spectrum: Spectrum) -> Tensor:
    """Return (kv_dim,) float64: the share of the energy along each right singular vector; zeros if there is none."""
    energy = spectrum.singular_values.double().square()
    total = energy.sum()
    return energy / total if total > 0 else energy


def relative_tails(spectrum: Spectrum) -> Tensor:
    """Return (kv_dim + 1,) float64: the share of the energy that is lost at each rank from 0 to kv_dim."""
    energy = relative_energy(spectrum)
    return torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
