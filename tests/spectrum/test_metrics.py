"""Rank metrics against spectra whose answers are known by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcore.spectrum import metrics


def spectrum(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_flat_spectrum_has_full_effective_rank() -> None:
    flat = torch.full((12,), 3.5, dtype=torch.float64)
    assert metrics.effective_rank(flat) == pytest.approx(12, abs=1e-12)
    assert metrics.normalized_effective_rank(flat) == pytest.approx(1, abs=1e-12)
    assert metrics.normalized_energy_rank(flat) == pytest.approx(1, abs=1e-12)
    assert metrics.stable_rank(flat) == pytest.approx(12, abs=1e-12)


def test_one_direction_has_effective_rank_one() -> None:
    single = spectrum(7, 0, 0, 0, 0)
    assert metrics.effective_rank(single) == pytest.approx(1, abs=1e-12)
    assert metrics.normalized_effective_rank(single) == pytest.approx(1 / 5, abs=1e-12)
    assert metrics.stable_rank(single) == pytest.approx(1, abs=1e-12)


def test_two_level_spectrum_by_hand() -> None:
    # p = (1/2, 1/4, 1/4): entropy = 1/2 ln 2 + 1/2 ln 4 = 3/2 ln 2.
    assert metrics.effective_rank(spectrum(2, 1, 1)) == pytest.approx(2**1.5, abs=1e-12)
    # p = (4/6, 1/6, 1/6) of the squares: entropy = 2/3 ln(3/2) + 1/3 ln 6.
    expected = math.exp(2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(6)) / 3
    assert metrics.normalized_energy_rank(spectrum(2, 1, 1)) == pytest.approx(expected, abs=1e-12)
    assert metrics.stable_rank(spectrum(2, 1, 1)) == pytest.approx(6 / 4, abs=1e-12)


def test_zeros_have_no_rank() -> None:
    zeros = torch.zeros(4, dtype=torch.float64)
    assert metrics.effective_rank(zeros) == 0
    assert metrics.normalized_effective_rank(zeros) == 0
    assert metrics.stable_rank(zeros) == 0
    assert metrics.rank_at_energy(zeros, 0.9) == 0


@pytest.mark.parametrize(("level", "rank"), [(0.5, 1), (0.9, 1), (0.91, 2), (0.99, 2), (0.9901, 3), (1.0, 3)])
def test_rank_at_energy_counts_directions(level: float, rank: int) -> None:
    energies = torch.tensor([90.0, 9.0, 1.0, 0.0], dtype=torch.float64)
    assert metrics.rank_at_energy(energies.sqrt(), level) == rank


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.floats(1e-9, 1e9))
def test_metrics_do_not_change_with_scale(values: list[float], scale: float) -> None:
    sigma = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    if sigma[0] < 1e-6:
        return
    for metric in (metrics.effective_rank, metrics.normalized_energy_rank, metrics.stable_rank):
        assert metric(scale * sigma) == pytest.approx(metric(sigma), rel=1e-9)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40))
def test_effective_rank_is_between_one_and_the_dimension(values: list[float]) -> None:
    assert 1 - 1e-9 <= metrics.effective_rank(torch.tensor(values, dtype=torch.float64)) <= len(values) + 1e-9
