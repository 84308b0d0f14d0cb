"""Ranks for ratios."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcore.compression.allocation import rank_at_ratio, uniform_ranks
from kvcore.model.geometry import LayerKind
from kvcore.spectrum import Spectrum


@pytest.mark.parametrize(
    ("ratio", "kv_dim", "rank"),
    [(1.0, 192, 192), (0.5, 192, 96), (0.5, 5, 3), (0.3, 5, 2), (0.1, 5, 1), (0.001, 192, 1), (0.999, 192, 192)],
)
def test_rank_is_rounded_half_up_and_clamped(ratio: float, kv_dim: int, rank: int) -> None:
    assert rank_at_ratio(ratio, kv_dim) == rank


@given(st.floats(0, 1, exclude_min=True), st.floats(0, 1, exclude_min=True), st.integers(1, 5000))
def test_rank_grows_with_the_ratio_and_stays_in_range(first: float, second: float, kv_dim: int) -> None:
    low, high = sorted((rank_at_ratio(first, kv_dim), rank_at_ratio(second, kv_dim)))
    assert 1 <= low <= high <= kv_dim
    assert (first <= second) == (rank_at_ratio(first, kv_dim) <= rank_at_ratio(second, kv_dim)) or low == high


@pytest.mark.parametrize("ratio", [0, -0.5, 1.01, float("nan")])
def test_ratios_outside_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="allowed are numbers above 0, up to 1"):
        rank_at_ratio(ratio, 8)


def test_uniform_ranks_leave_a_kind_at_ratio_one_alone() -> None:
    def spectrum(kv_dim: int) -> Spectrum:
        return Spectrum(torch.ones(kv_dim), torch.eye(kv_dim), 100)

    spectra = {
        LayerKind(0, "key"): spectrum(8),
        LayerKind(0, "value"): spectrum(8),
        LayerKind(1, "key"): spectrum(4),
        LayerKind(1, "value"): spectrum(4),
    }
    assert uniform_ranks(spectra, {"key": 1.0, "value": 0.5}) == {(0, "value"): 4, (1, "value"): 2}
    assert uniform_ranks(spectra, {"key": 0.25, "value": 1.0}) == {(0, "key"): 2, (1, "key"): 1}
    assert uniform_ranks(spectra, {"key": 1.0, "value": 1.0}) == {}
