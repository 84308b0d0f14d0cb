"""The perplexity surface: points, order and derived columns."""

import math

import pytest
from conftest import TEXTS
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from kvcore import measure
from kvcore.compression.allocation import uniform_ranks
from kvcore.compression.truncation import truncated
from kvcore.data.batches import make_batches
from kvcore.data.encoding import encode
from kvcore.data.examples import Example
from kvcore.evaluation.perplexity import sum_likelihood
from kvcore.evaluation.surface import grid_mean_nd_ppl, grid_points, perplexity_surface
from kvcore.model.geometry import discover


def test_points_begin_with_the_untruncated_model() -> None:
    assert grid_points([0.5, 1.0], [1.0, 0.25]) == [(1.0, 1.0), (0.5, 1.0), (0.5, 0.25), (1.0, 0.25)]
    assert grid_points([0.5], [0.25]) == [(1.0, 1.0), (0.5, 0.25)]
    assert grid_points([], []) == [(1.0, 1.0)]


def test_rows_are_passes_of_the_truncated_model(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    spectra, geometry = measure(tiny, tokenizer, TEXTS).spectra, discover(tiny)
    batches = make_batches(encode([Example(text) for text in TEXTS], tokenizer), batch_tokens=300)
    points = [(1.0, 1.0), (0.5, 1.0), (0.25, 0.5)]
    done: list[int] = []
    surface = perplexity_surface(tiny, geometry, spectra, batches, points, done.append)
    baseline = sum_likelihood(tiny, batches)
    assert sum(done) == 3 * sum(batch.token_count for batch in batches)
    assert list(zip(surface["key_ratio"], surface["value_ratio"], strict=True)) == points
    for row, (key_ratio, value_ratio) in zip(surface.itertuples(), points, strict=True):
        with truncated(geometry, spectra, uniform_ranks(spectra, {"key": key_ratio, "value": value_ratio})):
            expected = sum_likelihood(tiny, batches)
        assert (row.nll, row.tokens) == (expected.nll, expected.tokens)
        assert row.perplexity == pytest.approx(expected.perplexity, rel=1e-12)
        assert row.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=1e-12)
        growth = (expected.perplexity - baseline.perplexity) / baseline.perplexity
        assert row.nd_ppl == pytest.approx(growth, abs=1e-12)
        assert row.delta_nll == pytest.approx(math.log(expected.perplexity / baseline.perplexity), abs=1e-12)
    assert surface["nd_ppl"].iloc[0] == 0
    assert abs(surface["delta_nll"].iloc[2]) > 1e-3
    assert grid_mean_nd_ppl(surface) == pytest.approx((surface["nd_ppl"].iloc[1] + surface["nd_ppl"].iloc[2]) / 2)
    assert grid_mean_nd_ppl(surface.iloc[:1]) is None
