"""Rank metrics of a spectrum: pure functions of its singular values."""

import torch
from torch import Tensor

ENERGY_LEVELS = (0.9, 0.95, 0.99, 0.999)
CONVERGED_TOKENS_PER_DIM = 20


def _effective_rank(weights: Tensor) -> float:
    total = weights.sum()
    if total == 0:
        return 0.0
    share = weights / total
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))


def effective_rank(singular_values: Tensor) -> float:
    """Return exp of the Shannon entropy of the singular values taken as a distribution.

    Between 1 (one direction) and the number of singular values (flat); 0 for a matrix of zeros.
    Scale-invariant: no absolute threshold is involved.

    Args:
        singular_values: (kv_dim,), not negative.

    References:
        Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    return _effective_rank(singular_values.double())


def normalized_effective_rank(singular_values: Tensor) -> float:
    """Return the effective rank divided by the number of dimensions (KV-CoRE, arXiv 2602.05929).

    Args:
        singular_values: (kv_dim,), all of them, zeros included.
    """
    return effective_rank(singular_values) / len(singular_values)


def normalized_energy_rank(singular_values: Tensor) -> float:
    """Return the normalized effective rank with squared singular values as the distribution.

    Args:
        singular_values: (kv_dim,), all of them, zeros included.
    """
    return _effective_rank(singular_values.double().square()) / len(singular_values)


def stable_rank(singular_values: Tensor) -> float:
    """Return the squared Frobenius norm over the squared spectral norm; 0 for a matrix of zeros.

    Args:
        singular_values: (kv_dim,), not negative.
    """
    energy = singular_values.double().square()
    return float(energy.sum() / energy.max()) if energy.max() > 0 else 0.0


def rank_at_energy(singular_values: Tensor, level: float) -> int:
    """Return the smallest rank that keeps the given share of the energy; 0 for a matrix of zeros.

    Args:
        singular_values: (kv_dim,), descending.
        level: Share of the summed squares to keep, in (0, 1].
    """
    energy = singular_values.double().square()
    kept = energy.cumsum(0)
    if kept[-1] == 0:
        return 0
    return int((kept < level * kept[-1]).sum()) + 1


def tail_energy(singular_values: Tensor, rank: int) -> float:
    """Return the squared Frobenius error of the best approximation of the given rank.

    Args:
        singular_values: (kv_dim,), descending.
        rank: Directions kept, 0 to kv_dim.
    """
    return float(singular_values[rank:].double().square().sum())
