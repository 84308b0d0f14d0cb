"""Energy: in each layer the smallest rank that holds a share of the energy."""

import torch

from kvcore.compression.allocation import affordable_numbers
from kvcore.model.geometry import LayerKind
from kvcore.spectrum.metrics import rank_at_energy
from kvcore.spectrum.tables import Spectra, kv_dims


def ranks_at_energy(spectra: Spectra, share: float) -> dict[LayerKind, int]:
    """Return for each layer and kind the smallest rank, at least 1, that holds a share of the summed squares.

    Args:
        spectra: Spectrum by layer and kind.
        share: Share of the energy to keep, in (0, 1].
    """
    return {place: max(1, rank_at_energy(spectrum.singular_values, share)) for place, spectrum in spectra.items()}


def energy_ranks(spectra: Spectra, budget: float) -> dict[LayerKind, int]:
    """Return the ranks for the largest share of the energy that the budget can hold in every layer.

    The ranks change only at shares that some layer reaches with some rank, so those are all that is searched.
    A little less than the budget may be spent: the next larger share would take more.

    Raises:
        SettingError: The budget is not enough for one rank in each layer and kind.
    """
    numbers = affordable_numbers(kv_dims(spectra), budget)
    energies = [spectrum.singular_values.double().square() for spectrum in spectra.values()]
    held = [energy.cumsum(0) / energy.sum() for energy in energies if energy.sum() > 0]
    # A touch less than a rank holds, so that rounding does not ask for the next rank.
    shares = (torch.cat([torch.zeros(1, dtype=torch.float64), *held]).clamp(max=1) * (1 - 1e-12)).unique().tolist()
    low, high = 0, len(shares)
    while high - low > 1:
        middle = (low + high) // 2
        affordable = sum(ranks_at_energy(spectra, shares[middle]).values()) <= numbers
        low, high = (middle, high) if affordable else (low, middle)
    return ranks_at_energy(spectra, shares[low])
