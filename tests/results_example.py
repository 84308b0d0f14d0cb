"""Records and tables as cells would write them."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd

from kvcore.cell import identity
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
        splits={"evaluation": {"dataset": "general", "language": "english", "tokens": 20}},
        perplexity={"baseline": 12.5, "grid_mean_nd_ppl": math.inf},
        judged=None,
        gates={"token_count": Gate(passed=True, value=0, limit=0)},
        versions={"python": "3"},
        git_commit=None,
        device="cpu",
        seconds={"capture": 1.5},
        peak_memory_bytes=7,
    )


def write_cell(
    root: Path,
    model: str,
    dataset: str,
    language: str = "english",
    *,
    evaluated_on: str | None = None,
    evaluated_language: str | None = None,
    rank_budget: str = "grid",
    settings: dict[str, Any] | None = None,
    tables: dict[str, pd.DataFrame] | None = None,
    **changes: Any,
) -> Path:
    """Write a record, and tables beside it, where a cell would; settings are added to the names of their groups."""
    names = {"model": model, "dataset": dataset, "language": language, "rank_budget": rank_budget}
    given: dict[str, Any] = {group: {"name": name} for group, name in names.items()}
    given["evaluation"] = {"target": "all", "max_examples": None, "max_tokens": None}
    for group, values in (settings or {}).items():
        given[group] = given.get(group, {}) | values if isinstance(values, dict) else values
    spectrum = {name: names[name] for name in ("model", "dataset", "language")}
    on = {"dataset": evaluated_on or dataset, "language": evaluated_language or language}
    changes = {"id": identity(names | {"on": on}), "spectrum_id": identity(spectrum)} | changes
    splits = {"evaluation": on | {"tokens": 20}}
    record = dataclasses.replace(example_record(), settings=given, splits=splits, **changes)
    folder = root / "runs" / model / f"{dataset}-{language}" / f"{record.id}"
    folder.mkdir(parents=True)
    for name, table in (tables or {}).items():
        table.to_parquet(folder / f"{name}.parquet")
    record.write(folder / "record.json")
    return folder / "record.json"


def cost_tables(
    strategy: str, nll: dict[float | tuple[float, float], list[float]], tokens: list[int]
) -> dict[str, pd.DataFrame]:
    """Return the tables `perplexity` and `likelihoods` for NLL by example at budgets, or at pairs of ratios.

    The first entry is the untruncated model.
    """
    rows, examples = [], []
    baseline = sum(next(iter(nll.values()))) / sum(tokens)
    for point, (asked, by_example) in enumerate(nll.items()):
        key_ratio, value_ratio = asked if isinstance(asked, tuple) else (math.nan, math.nan)
        delta = sum(by_example) / sum(tokens) - baseline
        rows.append(
            {
                "point": point,
                "strategy": strategy if point else "none",
                "asked": f"{strategy} {asked}" if point else "untruncated",
                "key_ratio": key_ratio,
                "value_ratio": value_ratio,
                "budget": math.nan if isinstance(asked, tuple) else asked,
                "tokens": sum(tokens),
                "cost_ratio": 0.5,
                "kept_keys": 0.25,
                "kept_values": 0.75,
                "delta_nll": delta,
                "delta_nll_low": delta - 0.1,
                "delta_nll_high": delta + 0.1,
                "nd_ppl": math.expm1(delta),
            }
        )
        for example, (value, count) in enumerate(zip(by_example, tokens, strict=True)):
            examples.append({"point": point, "example": example, "tokens": count, "target_bytes": 9, "nll": value})
    return {"perplexity": pd.DataFrame(rows), "likelihoods": pd.DataFrame(examples)}
