"""Rank allocation: what a budget buys, and what it costs."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from kvcore.model.geometry import KINDS, Kind, LayerKind
from kvcore.schema import SettingError

Ranks = Mapping[LayerKind, int]
KvDims = Mapping[LayerKind, int]  # the full ranks: kv_dim by layer and kind, in the order of the forward pass


@dataclass(frozen=True)
class Cost:
    """What a cache keeps under an allocation, in numbers (the elements of keys and values, whatever their dtype).

    Attributes:
        kept_keys: Share of the cached numbers of keys that is kept: sum of ranks over sum of kv_dim.
        kept_values: The same of values.
        cost_ratio: The same of both together.
        basis_numbers: Numbers of the bases that turn what is kept back into keys and values, held once beside the
            cache: kv_dim x rank, summed over what is truncated.
        break_even_tokens: Cached tokens at which basis and truncated cache together are as large as the full
            cache; infinite if nothing is saved.
    """

    kept_keys: float
    kept_values: float
    cost_ratio: float
    basis_numbers: int
    break_even_tokens: float


@dataclass(frozen=True)
class Allocation:
    """The rank of every layer under one budget.

    Attributes:
        strategy: Name of the rank budget that made it; `none` for the untruncated model.
        asked: What was asked for, in words.
        ranks: Rank by layer and kind, all of them, in the order of the forward pass.
        key_ratio: Rank ratio asked for in all layers' keys, of a grid; else None.
        value_ratio: Rank ratio asked for in all layers' values, of a grid; else None.
        budget: Share of the full cache that was asked for; None where something else was.
    """

    strategy: str
    asked: str
    ranks: Ranks
    key_ratio: float | None = None
    value_ratio: float | None = None
    budget: float | None = None

    def cost(self, kv_dims: KvDims) -> Cost:
        """Count what is kept."""
        total, full = sum(self.ranks.values()), sum(kv_dims.values())
        basis_numbers = sum(kv_dims[place] * rank for place, rank in self.truncating(kv_dims).items())
        return Cost(
            kept_keys=self._kept("key", kv_dims),
            kept_values=self._kept("value", kv_dims),
            cost_ratio=total / full,
            basis_numbers=basis_numbers,
            break_even_tokens=basis_numbers / (full - total) if total < full else math.inf,
        )

    def truncating(self, kv_dims: KvDims) -> dict[LayerKind, int]:
        """Return the ranks that truncate; what is at full rank is left as it is."""
        return {place: rank for place, rank in self.ranks.items() if rank < kv_dims[place]}

    def _kept(self, kind: Kind, kv_dims: KvDims) -> float:
        return sum(only(kind, self.ranks).values()) / sum(only(kind, kv_dims).values())


def untruncated(kv_dims: KvDims) -> Allocation:
    """Return the allocation that truncates nothing."""
    return Allocation("none", "untruncated", dict(kv_dims), key_ratio=1.0, value_ratio=1.0, budget=1.0)


def only(kind: Kind, ranks: Ranks) -> dict[LayerKind, int]:
    """Return what belongs to the keys, or to the values."""
    return {place: rank for place, rank in ranks.items() if place.kind == kind}


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


def affordable_numbers(kv_dims: KvDims, budget: float) -> int:
    """Return how many numbers per token a budget allows, rounded half up.

    Raises:
        SettingError: It is not enough for one rank in each layer and kind.
    """
    full = sum(kv_dims.values())
    numbers = math.floor(budget * full + 0.5)
    if numbers < len(kv_dims):
        least = f"one rank for the keys and the values of each layer takes {len(kv_dims)} of {full} numbers"
        raise SettingError("rank_budget.budgets", budget, f"{least}, {len(kv_dims) / full:.3g} of the cache")
    return numbers


def least_ranks(kv_dims: KvDims, floor: float, budget: float) -> dict[LayerKind, int]:
    """Return the ranks that every layer gets in any case: `floor` of its kv_dim, rounded up, and at least 1.

    Raises:
        SettingError: They alone exceed the budget.
    """
    ranks = {place: max(1, math.ceil(floor * kv_dim)) for place, kv_dim in kv_dims.items()}
    if sum(ranks.values()) > affordable_numbers(kv_dims, budget):
        raise SettingError("rank_budget.floor", floor, f"takes more than the budget of {budget:g}")
    return ranks


def spend(gains: Mapping[LayerKind, Iterable[float]], ranks: Ranks, numbers: int) -> dict[LayerKind, int]:
    """Raise ranks one by one, always the one that gains the most, until `numbers` are spent.

    Where the gains of each layer fall from rank to rank (its loss is convex), the result is optimal: no ranks
    with the same sum, none below those given, gain more. For an exchange argument, take any other ranks of the
    same sum. Some layer then has a rank that this one lacks, and some layer lacks one that this one has. As gains
    fall within a layer, the missing one was open to be taken when the other was: it gains no less, and exchanging
    them loses nothing. Exchanges end at the ranks found here.

    Args:
        gains: For each layer and kind, (kv_dim,) what its first, second, ... rank gains; falling.
        ranks: Where to begin.
        numbers: Sum of ranks to reach.

    Returns:
        Rank by layer and kind; earlier layers first where gains are equal.
    """
    open_gains = [
        (-gain, order, step, place)
        for order, (place, gained) in enumerate(gains.items())
        for step, gain in enumerate(gained)
        if step >= ranks[place]
    ]
    spent = dict(ranks)
    for _, _, _, place in sorted(open_gains)[: numbers - sum(ranks.values())]:
        spent[place] += 1
    return spent


def spend_within(
    kv_dims: KvDims,
    gains: Mapping[LayerKind, Iterable[float]],
    budget: float,
    *,
    floor: float = 0.0,
    kind: Literal["pooled", "apart"] = "pooled",
) -> dict[LayerKind, int]:
    """Spend a budget above a floor where it gains the most, see `spend`.

    Args:
        kv_dims: kv_dim by layer and kind.
        gains: For each layer and kind, (kv_dim,) what its first, second, ... rank gains; falling.
        budget: Share of the full cache to spend, in (0, 1].
        floor: Share of its kv_dim that every layer and kind gets in any case.
        kind: `pooled`: one budget for keys and values; `apart`: the same share for the keys and for the values.

    Raises:
        SettingError: The budget is not enough for one rank, or for the floor, in each layer and kind.
    """
    if kind == "pooled":
        return spend(gains, least_ranks(kv_dims, floor, budget), affordable_numbers(kv_dims, budget))
    spent: dict[LayerKind, int] = {}
    for one in KINDS:
        part = only(one, kv_dims)
        least = least_ranks(part, floor, budget)
        spent |= spend({place: gains[place] for place in part}, least, affordable_numbers(part, budget))
    return {place: spent[place] for place in kv_dims}
