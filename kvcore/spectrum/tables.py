"""Spectra as tables: one row per layer and kind."""

from collections.abc import Mapping

import pandas as pd

from kvcore.model.geometry import KINDS, LayerKind
from kvcore.spectrum import metrics
from kvcore.spectrum.streaming import Spectrum

Spectra = Mapping[LayerKind, Spectrum]


def kv_dims(spectra: Spectra) -> dict[LayerKind, int]:
    """Return the full rank of each layer and kind."""
    return {place: spectrum.kv_dim for place, spectrum in spectra.items()}


def tokens_per_dim(spectrum: Spectrum) -> float:
    """Return how many tokens were seen for each dimension of the spectrum."""
    return spectrum.tokens / spectrum.kv_dim


def is_converged(spectrum: Spectrum) -> bool:
    """Say whether enough tokens were seen for the normalized effective rank to have settled."""
    return tokens_per_dim(spectrum) >= metrics.CONVERGED_TOKENS_PER_DIM


def metrics_of(spectrum: Spectrum) -> dict[str, object]:
    """Return the metrics of a spectrum by the names of their columns."""
    sigma = spectrum.singular_values
    ranks = {f"rank_at_energy_{level}": metrics.rank_at_energy(sigma, level) for level in metrics.ENERGY_LEVELS}
    return {
        "tokens": spectrum.tokens,
        "effective_rank": metrics.effective_rank(sigma),
        "ner": metrics.normalized_effective_rank(sigma),
        "ner_energy": metrics.normalized_energy_rank(sigma),
        "stable_rank": metrics.stable_rank(sigma),
        **ranks,
        "converged": is_converged(spectrum),
    }


def layer_table(spectra: Spectra) -> pd.DataFrame:
    """Return every metric of every spectrum.

    Columns: layer, kind, kv_dim, tokens, effective_rank, ner, ner_energy, stable_rank,
    rank_at_energy_0.9 / _0.95 / _0.99 / _0.999 (ranks; divide by kv_dim for ratios), converged.
    """
    return pd.DataFrame(
        [
            {"layer": place.layer, "kind": place.kind, "kv_dim": spectrum.kv_dim} | metrics_of(spectrum)
            for place, spectrum in spectra.items()
        ]
    )


def model_level_ner(layers: pd.DataFrame) -> dict[str, float]:
    """Return the plain mean over layers, keys and values apart."""
    return {kind: float(layers.loc[layers["kind"] == kind, "ner"].mean()) for kind in KINDS}
