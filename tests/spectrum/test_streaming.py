"""The streaming decomposition against a float64 decomposition of all rows at once."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvcore.spectrum import StreamingSVD, TriangularSVD
from kvcore.spectrum.metrics import normalized_effective_rank


def rows_with(sigma: Tensor, tokens: int, seed: int = 0) -> Tensor:
    """Return (tokens, kv_dim) float64 rows with the given singular values."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(tokens, len(sigma), generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(len(sigma), len(sigma), generator=generator, dtype=torch.float64))[0]
    return left * sigma @ right.T


def test_known_singular_values_come_back() -> None:
    sigma = torch.tensor([9.0, 4.0, 4.0, 1.0, 0.25], dtype=torch.float64)
    found = StreamingSVD(5).update(rows_with(sigma, 40)).finish()
    assert torch.allclose(found.singular_values, sigma, rtol=1e-12, atol=0)
    assert found.tokens == 40


KV_DIM = 1024


def power_law(condition: float) -> Tensor:
    return rows_with(torch.logspace(0, -np.log10(condition), KV_DIM, dtype=torch.float64), 4 * KV_DIM)


def with_sinks(rows: Tensor, scale: float, directions: int) -> Tensor:
    """Scale 0.1 % of the rows up along one or two directions, as attention sinks are."""
    generator = torch.Generator().manual_seed(5)
    axes = torch.randn(directions, KV_DIM, generator=generator, dtype=torch.float64)
    long = torch.arange(0, len(rows), 1000)
    rows[long] = scale * rows.norm(dim=1).mean() * axes[torch.arange(len(long)) % directions] / KV_DIM**0.5
    return rows


def with_massive_columns(rows: Tensor) -> Tensor:
    rows[:, [3, 700]] *= 1000
    return rows


ADVERSARIAL: dict[str, Callable[[], Tensor]] = {
    **{f"power law, condition {condition:g}": partial(power_law, condition) for condition in (1e3, 1e6, 1e8)},
    **{
        f"condition {condition:g}, sinks {scale:g} times along {directions}": partial(
            lambda condition, scale, directions: with_sinks(power_law(condition), scale, directions),
            condition, scale, directions,
        )
        for condition in (1e3, 1e6, 1e8) for scale in (1e3, 1e4) for directions in (1, 2)
    },
    **{
        f"condition {condition:g}, massive columns": partial(lambda c: with_massive_columns(power_law(c)), condition)
        for condition in (1e3, 1e6, 1e8)
    },
    "bfloat16": lambda: with_sinks(power_law(1e3), 1e3, 1).bfloat16(),
    "float16": lambda: (with_sinks(power_law(1e3), 1e3, 1) * 10).half(),
    "rank-deficient": lambda: rows_with(torch.ones(256, dtype=torch.float64), 4096)
    @ torch.linalg.qr(torch.randn(KV_DIM, 256, generator=torch.Generator().manual_seed(6), dtype=torch.float64))[0].T,
    "all zero": lambda: torch.zeros(2000, KV_DIM),
    "one token": lambda: torch.randn(1, KV_DIM, generator=torch.Generator().manual_seed(7)),
    "fewer tokens than dimensions": lambda: power_law(1e6)[:500],
}  # fmt: skip


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_number_is_right_for_every_spectrum(name: str) -> None:
    rows = ADVERSARIAL[name]()
    expected = torch.zeros(KV_DIM, dtype=torch.float64)
    expected[: min(rows.shape)] = torch.linalg.svdvals(rows.double())
    accumulator = StreamingSVD(KV_DIM)
    for batch in rows.split(777):
        accumulator.update(batch)
    found = accumulator.finish().singular_values
    assert normalized_effective_rank(found) == pytest.approx(normalized_effective_rank(expected), abs=1e-6)
    large = expected > 1e-5 * expected[0]
    assert ((found / expected - 1).abs()[large] < 1e-3).all()
    assert (name == "all zero") == (normalized_effective_rank(found) == 0)


@pytest.mark.parametrize("name", ["power law, condition 1e+08", "condition 1e+08, massive columns", "rank-deficient"])
def test_exact_precision_keeps_the_tail(name: str) -> None:
    rows = ADVERSARIAL[name]()
    if name.startswith("power"):
        rows = power_law(1e10)
    expected = torch.linalg.svdvals(rows)
    accumulator = TriangularSVD(KV_DIM)
    for batch in rows.split(777):
        accumulator.update(batch)
    found = accumulator.finish()
    large = expected > 1e-9 * expected[0]
    assert ((found.singular_values / expected - 1).abs()[large] < 1e-6).all()
    assert torch.allclose(accumulator.singular_values(), found.singular_values, atol=1e-14 * float(expected[0]))
    difference = normalized_effective_rank(found.singular_values) - normalized_effective_rank(expected)
    assert abs(difference) < 1e-10
    along = (rows @ found.right_singular_vectors).norm(dim=0)
    assert torch.allclose(along[large], expected[large], rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_rows_are_accumulated_exactly(dtype: torch.dtype) -> None:
    rows = torch.randn(3000, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    rows[:3] *= 1000  # attention sinks
    expected = torch.linalg.svdvals(rows.double())
    found = StreamingSVD(48).update(rows).finish().singular_values
    assert torch.allclose(found, expected, rtol=1e-9)


def test_vectors_diagonalise_and_have_a_fixed_sign() -> None:
    rows = rows_with(torch.linspace(5, 1, 6, dtype=torch.float64), 30)
    found = StreamingSVD(6).update(rows).finish()
    vectors = found.right_singular_vectors
    assert torch.allclose(vectors.T @ vectors, torch.eye(6, dtype=torch.float64), atol=1e-12)
    assert torch.allclose((rows @ vectors).norm(dim=0), found.singular_values, rtol=1e-10)
    negated = StreamingSVD(6).update(-rows).finish().right_singular_vectors
    assert torch.allclose(vectors, negated, atol=1e-9)
    assert (vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all()


def test_fewer_rows_than_dimensions_leave_exact_zeros() -> None:
    rows = torch.randn(3, 10, generator=torch.Generator().manual_seed(2))
    found = StreamingSVD(10).update(rows).finish().singular_values
    assert torch.allclose(found[:3], torch.linalg.svdvals(rows.double()), rtol=1e-9)
    assert (found[3:] == 0).all()


def test_zero_rows_have_normalized_effective_rank_zero() -> None:
    assert normalized_effective_rank(StreamingSVD(4).update(torch.zeros(5, 4)).finish().singular_values) == 0


@settings(deadline=None, max_examples=100)
@given(
    made=st.sampled_from([StreamingSVD, TriangularSVD]),
    kv_dim=st.integers(1, 24),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    scale=st.floats(1e-3, 1e3),
    shares=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    seed=st.integers(0, 2**31),
)
def test_batches_and_merges_give_the_decomposition_of_everything(
    made: type[StreamingSVD], kv_dim: int, sizes: list[int], scale: float, shares: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [scale * torch.randn(size, kv_dim, generator=generator) for size in sizes]
    everything = torch.cat(batches)
    if len(everything) == 0:
        return
    parts = [made(kv_dim) for _ in range(3)]
    for share, batch in zip(shares, batches, strict=False):
        parts[share].update(batch)
    first, second, third = (made.unpack(part.packed(), kv_dim, part.tokens) for part in parts)
    merged = first.merge(second).merge(third)
    regrouped = parts[0].merge(parts[1].merge(parts[2]))
    alone = made(kv_dim).update(everything)

    def gram(accumulator: StreamingSVD) -> Tensor:
        triangle = accumulator.current_triangle()
        upper = triangle.triu(1)
        return triangle.T @ triangle if made is TriangularSVD else triangle + upper.T

    for other in (merged, regrouped):
        assert other.tokens == len(everything)
        assert (gram(other) - gram(alone)).norm() <= 1e-13 * gram(alone).norm()
    expected = torch.zeros(kv_dim, dtype=torch.float64)
    values = torch.linalg.svdvals(everything.double())
    expected[: len(values)] = values
    found, whole = merged.finish().singular_values, alone.finish().singular_values
    assert torch.allclose(found, expected, atol=1e-7 * float(expected[0]))
    assert normalized_effective_rank(found) == pytest.approx(normalized_effective_rank(expected), abs=1e-6)
    if len(everything) >= 2 * kv_dim:  # otherwise some values are nothing but rounding
        assert normalized_effective_rank(found) == pytest.approx(normalized_effective_rank(whole), abs=1e-10)


@pytest.mark.parametrize("made", [StreamingSVD, TriangularSVD])
def test_rows_may_be_overwritten_after_an_update(made: type[StreamingSVD]) -> None:
    everything = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    buffer, accumulator = torch.empty(8, 6, dtype=torch.float64), made(6)
    for rows in everything:
        accumulator.update(buffer.copy_(rows))
    assert torch.allclose(accumulator.finish().singular_values, torch.linalg.svdvals(everything.flatten(0, 1)))


def test_merge_leaves_the_other_accumulator_alone() -> None:
    first, second = StreamingSVD(2).update(torch.eye(2)), StreamingSVD(2).update(2 * torch.eye(2))
    first.merge(second)
    assert second.tokens == 2
    assert second.finish().singular_values.tolist() == [2, 2]
    assert first.finish().singular_values.tolist() == pytest.approx([5**0.5, 5**0.5])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("made", [StreamingSVD, TriangularSVD])
def test_a_bad_number_is_never_summed_silently(bad: float, made: type[StreamingSVD]) -> None:
    rows = torch.ones(4, 3)
    rows[2, 1] = bad
    with pytest.raises(ValueError, match="NaN or an infinity"):
        made(3).update(rows).update(torch.ones(9, 3)).finish()


@pytest.mark.parametrize("rows", [torch.zeros(3), torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.long)])
def test_rows_of_another_shape_are_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"shape \(tokens, 3\)"):
        StreamingSVD(3).update(rows)


def test_nothing_seen_has_no_spectrum() -> None:
    with pytest.raises(ValueError, match="no rows"):
        StreamingSVD(3).finish()


def test_accumulators_of_other_sizes_or_precision_do_not_merge() -> None:
    with pytest.raises(ValueError, match="kv_dim = 4"):
        StreamingSVD(3).merge(StreamingSVD(4))
    with pytest.raises(ValueError, match="precision exact: only precision standard can be merged"):
        StreamingSVD(3).merge(TriangularSVD(3))


def test_a_dimension_is_needed() -> None:
    with pytest.raises(ValueError, match="kv_dim = 0"):
        StreamingSVD(0)


@pytest.mark.parametrize("made", [StreamingSVD, TriangularSVD])
def test_columns_are_those_of_an_accumulator_that_saw_nothing_else(made: type[StreamingSVD]) -> None:
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    part = made(6).update(rows).columns(2, 5).finish()
    alone = made(3).update(rows[:, 2:5]).finish()
    assert part.tokens == 50
    assert torch.allclose(part.singular_values, alone.singular_values, rtol=1e-12)
