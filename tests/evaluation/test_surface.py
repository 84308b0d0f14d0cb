"""The perplexity surface: points, order, derived columns and intervals."""

import math

import numpy as np
import pandas as pd
import pytest
from conftest import TEXTS
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from kvcore import measure
from kvcore.compression.allocation import Allocation, untruncated
from kvcore.compression.budgets.uniform import ranks_at_ratios
from kvcore.compression.truncation import truncated
from kvcore.data.batches import make_batches
from kvcore.data.encoding import encode
from kvcore.data.examples import Example
from kvcore.evaluation.intervals import RESAMPLES
from kvcore.evaluation.perplexity import measure_likelihoods
from kvcore.evaluation.surface import PerplexitySurface, grid_mean_nd_ppl, perplexity_surface
from kvcore.model.geometry import discover

POINTS = [(0.5, 1.0), (0.25, 0.5)]


@pytest.fixture
def surface(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> PerplexitySurface:
    geometry, spectra = discover(tiny), measure(tiny, tokenizer, TEXTS).spectra
    batches = make_batches(encode([Example(text) for text in TEXTS], tokenizer), batch_tokens=300)
    allocations = [
        untruncated(geometry.kv_dims),
        *(
            Allocation("grid", "x", ranks_at_ratios(geometry.kv_dims, {"key": key, "value": value}), key, value)
            for key, value in POINTS
        ),
    ]
    done: list[int] = []
    found = perplexity_surface(tiny, geometry, spectra, batches, allocations, done.append)
    assert sum(done) == 3 * batches.token_count
    for number, allocation in enumerate(allocations):
        with truncated(geometry, spectra, allocation.truncating(geometry.kv_dims)):
            expected = measure_likelihoods(tiny, batches)
        row = found.points.iloc[number]
        assert (row["nll"], row["tokens"]) == (expected.total_nll, expected.total_tokens)
        assert row["perplexity"] == pytest.approx(expected.perplexity, rel=1e-12)
        assert row["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-12)
        examples = found.examples[found.examples["point"] == number]
        assert list(examples["nll"]) == list(expected.nll)
        assert list(examples["target_bytes"]) == [len(text.encode()) - 1 for text in TEXTS]
    return found


def test_derived_columns(surface: PerplexitySurface) -> None:
    points = surface.points
    assert list(zip(points["key_ratio"], points["value_ratio"], strict=True)) == [(1.0, 1.0), *POINTS]
    assert list(points["cost_ratio"]) == [1.0, 0.75, 0.375]
    assert (points["nd_ppl"].iloc[0], points["delta_nll"].iloc[0]) == (0, 0)
    baseline = points["perplexity"].iloc[0]
    for _, row in points.iterrows():
        assert row["nd_ppl"] == pytest.approx((row["perplexity"] - baseline) / baseline, abs=1e-12)
        assert row["delta_nll"] == pytest.approx(math.log(row["perplexity"] / baseline), abs=1e-12)
    assert abs(points["delta_nll"].iloc[2]) > 1e-3


def test_intervals_are_those_of_draws_of_examples(surface: PerplexitySurface) -> None:
    examples = surface.examples.pivot(index="example", columns="point", values="nll")
    tokens = surface.examples[surface.examples["point"] == 0]["tokens"].to_numpy()
    draws = np.random.default_rng(7).integers(0, len(tokens), (4 * RESAMPLES, len(tokens)))
    for number, row in surface.points.iterrows():
        nll = examples[number].to_numpy()
        means = nll[draws].sum(1) / tokens[draws].sum(1)
        deltas = (nll - examples[0].to_numpy())[draws].sum(1) / tokens[draws].sum(1)
        for name, drawn in (
            ("perplexity", np.exp(means)), ("delta_nll", deltas), ("nd_ppl", np.expm1(deltas))
        ):  # fmt: skip
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
            spread = np.ptp(drawn) + 1e-12
            assert row[f"{name}_low"] == pytest.approx(np.quantile(drawn, 0.025), abs=0.05 * spread)
            assert row[f"{name}_high"] == pytest.approx(np.quantile(drawn, 0.975), abs=0.05 * spread)


def test_mean_over_the_grid(surface: PerplexitySurface) -> None:
    mean, interval = grid_mean_nd_ppl(surface)
    assert mean == pytest.approx(surface.points["nd_ppl"].iloc[1:].mean())
    assert interval.low < mean < interval.high
    only_baseline = PerplexitySurface(surface.points.iloc[:1], surface.examples[surface.examples["point"] == 0])
    assert grid_mean_nd_ppl(only_baseline)[0] is None
    of_budgets = surface.points.assign(key_ratio=[1.0, math.nan, math.nan], value_ratio=[1.0, math.nan, math.nan])
    assert grid_mean_nd_ppl(PerplexitySurface(of_budgets, surface.examples))[0] is None
    with_one = pd.concat([surface.points, surface.points.iloc[:1].assign(strategy="grid")])
    assert grid_mean_nd_ppl(PerplexitySurface(with_one, surface.examples))[0] == mean
