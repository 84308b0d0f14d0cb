"""A record as a cell would write it."""

import math

from kvcore.evaluation.gates import Gate
from kvcore.results.record import Record


def example_record() -> Record:
    return Record(
        status="finished",
        id="abc",
        spectrum_id="def",
        settings={"seed": 0, "dataset": {"languages": ("english",)}},
        tokens=100,
        tokens_per_dim=6.25,
        converged=False,
        ner={"key": 0.25, "value": 0.5},
        splits={"evaluation": {"tokens": 20}},
        perplexity={"baseline": 12.5, "grid_mean_nd_ppl": math.inf},
        gates={"token_count": Gate(passed=True, value=0, limit=0)},
        versions={"python": "3"},
        git_commit=None,
        device="cpu",
        seconds={"capture": 1.5},
        peak_memory_bytes=7,
    )
