"""The streaming decomposition against a float64 decomposition of all rows at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvcore.spectrum import StreamingSVD
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


@pytest.mark.parametrize("condition", [1e3, 1e6, 1e8])
def test_normalized_effective_rank_of_steep_spectra(condition: float) -> None:
    sigma = torch.logspace(0, -np.log10(condition), 128, dtype=torch.float64)
    found = StreamingSVD(128).update(rows_with(sigma, 1000)).finish()
    assert abs(normalized_effective_rank(found.singular_values) - normalized_effective_rank(sigma)) < 1e-6
    large = sigma > 1e-5 * sigma[0]
    assert ((found.singular_values / sigma - 1).abs()[large] < 1e-3).all()


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


@settings(deadline=None, max_examples=60)
@given(
    kv_dim=st.integers(1, 24),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    scale=st.floats(1e-3, 1e3),
    cut=st.integers(0, 6),
    seed=st.integers(0, 2**31),
)
def test_batches_and_merges_give_the_decomposition_of_everything(
    kv_dim: int, sizes: list[int], scale: float, cut: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [scale * torch.randn(size, kv_dim, generator=generator) for size in sizes]
    everything = torch.cat(batches)
    if len(everything) == 0:
        return
    left, right = StreamingSVD(kv_dim), StreamingSVD(kv_dim)
    for index, batch in enumerate(batches):
        (left if index < cut else right).update(batch)
    merged = left.merge(right).finish()
    expected = torch.zeros(kv_dim, dtype=torch.float64)
    values = torch.linalg.svdvals(everything.double())
    expected[: len(values)] = values
    assert merged.tokens == len(everything)
    assert torch.allclose(merged.singular_values, expected, atol=1e-7 * float(expected[0]))
    difference = normalized_effective_rank(merged.singular_values) - normalized_effective_rank(expected)
    assert abs(difference) < 1e-6


def test_merge_leaves_the_other_accumulator_alone() -> None:
    first, second = StreamingSVD(2).update(torch.eye(2)), StreamingSVD(2).update(2 * torch.eye(2))
    first.merge(second)
    assert second.tokens == 2
    assert second.finish().singular_values.tolist() == [2, 2]
    assert first.finish().singular_values.tolist() == pytest.approx([5**0.5, 5**0.5])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_number_is_never_summed_silently(bad: float) -> None:
    rows = torch.ones(4, 3)
    rows[2, 1] = bad
    with pytest.raises(ValueError, match="NaN or an infinity"):
        StreamingSVD(3).update(rows).finish()


@pytest.mark.parametrize("rows", [torch.zeros(3), torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.long)])
def test_rows_of_another_shape_are_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"shape \(tokens, 3\)"):
        StreamingSVD(3).update(rows)


def test_nothing_seen_has_no_spectrum() -> None:
    with pytest.raises(ValueError, match="no rows"):
        StreamingSVD(3).finish()


def test_accumulators_of_other_sizes_do_not_merge() -> None:
    with pytest.raises(ValueError, match="kv_dim = 4"):
        StreamingSVD(3).merge(StreamingSVD(4))


def test_a_dimension_is_needed() -> None:
    with pytest.raises(ValueError, match="kv_dim = 0"):
        StreamingSVD(0)


def test_columns_are_those_of_an_accumulator_that_saw_nothing_else() -> None:
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    part = StreamingSVD(6).update(rows).columns(2, 5).finish()
    alone = StreamingSVD(3).update(rows[:, 2:5]).finish()
    assert part.tokens == 50
    assert torch.allclose(part.singular_values, alone.singular_values, rtol=1e-12)
