"""Ranks, what they cost, and spending a budget optimally."""

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcore.compression.allocation import (
    Allocation,
    affordable_numbers,
    least_ranks,
    only,
    rank_at_ratio,
    spend,
    spend_within,
    untruncated,
)
from kvcore.model.geometry import LayerKind
from kvcore.schema import SettingError

KV_DIMS = {LayerKind(0, "key"): 8, LayerKind(0, "value"): 8, LayerKind(1, "key"): 4, LayerKind(1, "value"): 4}


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


def test_cost_by_hand() -> None:
    ranks = dict(zip(KV_DIMS, (2, 8, 1, 3), strict=True))
    allocation = Allocation("any", "any", ranks)
    assert allocation.truncating(KV_DIMS) == {(0, "key"): 2, (1, "key"): 1, (1, "value"): 3}
    cost = allocation.cost(KV_DIMS)
    assert (cost.kept_keys, cost.kept_values) == (3 / 12, 11 / 12)
    assert cost.cost_ratio == 14 / 24
    assert cost.basis_numbers == 8 * 2 + 4 * 1 + 4 * 3  # values of layer 0 are whole and need none
    assert cost.break_even_tokens == 32 / 10
    whole = untruncated(KV_DIMS).cost(KV_DIMS)
    assert (whole.cost_ratio, whole.basis_numbers, whole.break_even_tokens) == (1, 0, math.inf)


def test_budgets_that_buy_less_than_one_rank_are_refused() -> None:
    assert affordable_numbers(KV_DIMS, 0.5) == 12
    assert affordable_numbers(KV_DIMS, 4 / 24) == 4
    with pytest.raises(SettingError, match=r"rank_budget.budgets = 0.1: one rank .* takes 4 of 24 numbers, 0.167 of"):
        affordable_numbers(KV_DIMS, 0.1)


def test_a_floor_above_the_budget_is_refused() -> None:
    assert least_ranks(KV_DIMS, 0.3, 0.5) == dict(zip(KV_DIMS, (3, 3, 2, 2), strict=True))
    assert set(least_ranks(KV_DIMS, 0.0, 0.5).values()) == {1}
    with pytest.raises(SettingError, match=r"rank_budget.floor = 0.6: takes more than the budget of 0.5"):
        least_ranks(KV_DIMS, 0.6, 0.5)


falling = st.lists(st.floats(0, 100), min_size=1, max_size=4).map(lambda gains: sorted(gains, reverse=True))


def gained(curves: Sequence[Sequence[float]], ranks: Sequence[int]) -> float:
    return sum(sum(curve[:rank]) for curve, rank in zip(curves, ranks, strict=True))


@given(st.lists(falling, min_size=1, max_size=4), st.data())
def test_spending_equals_an_exhaustive_search(curves: list[list[float]], data: st.DataObject) -> None:
    places = [LayerKind(layer, "key") for layer in range(len(curves))]
    least = [data.draw(st.integers(1, len(curve))) for curve in curves]
    numbers = data.draw(st.integers(sum(least), sum(map(len, curves))))
    found = spend(dict(zip(places, curves, strict=True)), dict(zip(places, least, strict=True)), numbers)
    best = max(
        gained(curves, ranks)
        for ranks in itertools.product(*(range(low, len(curve) + 1) for low, curve in zip(least, curves, strict=True)))
        if sum(ranks) == numbers
    )
    ranks = [found[place] for place in places]
    assert sum(ranks) == numbers
    assert all(low <= rank <= len(curve) for low, rank, curve in zip(least, ranks, curves, strict=True))
    assert gained(curves, ranks) == pytest.approx(best, rel=1e-12)


def test_keys_and_values_apart_get_the_same_share() -> None:
    gains = {place: [1.0 if place.kind == "key" else 2.0] * kv_dim for place, kv_dim in KV_DIMS.items()}
    pooled = spend_within(KV_DIMS, gains, 0.5)
    assert sum(only("value", pooled).values()) == 10  # all but the two ranks that keys must have
    apart = spend_within(KV_DIMS, gains, 0.5, kind="apart")
    assert [sum(only(kind, apart).values()) for kind in ("key", "value")] == [6, 6]
    assert list(apart) == list(KV_DIMS)
