"""Bootstrap intervals: their coverage, their ends, and what has none."""

import math

import numpy as np
import pytest

from kvcore.evaluation.intervals import bootstrap_interval, mean_interval


def test_nineteen_intervals_of_twenty_hold_the_mean() -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, (200, 40))
    held = sum(low <= 3.0 <= high for low, high in map(mean_interval, draws))
    assert 0.90 <= held / 200 <= 0.98


def test_a_mean_of_equal_numbers_has_no_width() -> None:
    assert mean_interval([2.0] * 5) == (2.0, 2.0)


def test_intervals_are_reproducible() -> None:
    values = np.random.default_rng(1).normal(size=20)
    assert mean_interval(values) == mean_interval(values)


def test_samples_are_drawn_together() -> None:
    values = np.random.default_rng(2).normal(size=30)
    interval = bootstrap_interval([values, values], lambda one, other, axis=-1: one.mean(axis) - other.mean(axis))
    assert interval == (0.0, 0.0)


def test_one_example_has_no_interval() -> None:
    assert all(math.isnan(end) for end in mean_interval([1.0]))


def test_draws_that_are_no_number_are_left_out() -> None:
    def mean_or_nothing(values: np.ndarray, axis: int = -1) -> np.ndarray:
        means = values.mean(axis)
        return np.where(means > 0.5, means, np.nan)

    interval = bootstrap_interval([[0.0, 1.0, 1.0, 1.0]], mean_or_nothing)
    assert interval.low > 0.5
    assert all(math.isnan(end) for end in bootstrap_interval([[0.0, 0.0]], mean_or_nothing))


def test_a_statistic_of_one_draw_at_a_time() -> None:
    values = list(np.random.default_rng(3).normal(size=15))
    assert bootstrap_interval([values], lambda drawn: float(np.mean(drawn)), vectorized=False) == pytest.approx(
        mean_interval(values), abs=1e-12
    )
