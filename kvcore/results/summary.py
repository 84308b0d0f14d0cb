"""What a person sees at the end of a cell."""

import math
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from kvcore.results.record import UNTRUSTED, Record
from kvcore.spectrum.tables import model_level_ner


def print_summary(console: Console, record: Record, surface: pd.DataFrame, paths: list[Path]) -> None:
    """Print the normalized effective ranks, the perplexity surface, the gates and what was written."""
    settings = record.settings
    console.print(f"\n{settings['model']['name']} on {settings['dataset']['name']}, {settings['language']['name']}")
    for line in _notes_on_data(record):
        console.print(line)
    if record.status == UNTRUSTED:
        console.print("A GATE FAILED: these numbers cannot be trusted")
    console.print(_ner_table(record))
    if settings["rank_budget"]["name"] == "grid":
        console.print("perplexity by rank ratio (down: keys, across: values)")
        console.print(_surface_table(surface))
    elif len(surface) > 1:
        console.print("cost by budget (kept: share of the full cache; delta NLL in nats per token, 95 % interval)")
        console.print(_cost_table(surface))
    console.print("gates")
    console.print(_gate_table(record))
    for path in paths:
        # Paths are for copying: never wrapped.
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def print_pool(console: Console, layers: pd.DataFrame) -> None:
    """Print the model-level NER of a layer table, and whether it has settled."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("NER keys", "NER values", "tokens", "converged"):
        table.add_column(heading, justify="right")
    ner = model_level_ner(layers)
    settled = "yes" if layers["converged"].all() else "NO"
    table.add_row(f"{ner['key']:.4f}", f"{ner['value']:.4f}", f"{layers['tokens'].min():,}", settled)
    console.print(table)


def print_ner_table(console: Console, ner: pd.DataFrame) -> None:
    """Print NER of keys (K) and values (V) in the published layout, see `kvcore.results.collection.ner_table`."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for level, name in enumerate(ner.index.names):
        table.add_column(str(name), min_width=max(map(len, ner.index.get_level_values(level))))
    for column in ner.columns:
        table.add_column("\n".join(column), justify="right", min_width=len(column[0]))
    for labels, values in zip(ner.index, ner.to_numpy(), strict=True):
        table.add_row(*labels, *values)
    console.print(table)
    if ner.apply(lambda column: column.str.endswith("*")).to_numpy().any():
        console.print("* not converged: fewer than 20 tokens per dimension")


def _ner_table(record: Record) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("NER keys", "NER values", "tokens", "per dim", "converged", "perplexity", "ND-PPL"):
        table.add_column(heading, justify="right")
    mean = record.perplexity["grid_mean_nd_ppl"]
    table.add_row(
        f"{record.ner['key']:.4f}",
        f"{record.ner['value']:.4f}",
        f"{record.tokens:,}",
        f"{record.tokens_per_dim:.1f}",
        "yes" if record.converged else "NO",
        f"{record.perplexity['baseline']:.4f}",
        "-" if mean is None else f"{mean:.4g}",
    )
    return table


def _surface_table(surface: pd.DataFrame) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    value_ratios = sorted(surface["value_ratio"].unique(), reverse=True)
    perplexity = surface.set_index(["key_ratio", "value_ratio"])["perplexity"].to_dict()
    table.add_column("", justify="right")
    for value_ratio in value_ratios:
        table.add_column(f"{value_ratio:g}", justify="right")
    for key_ratio in sorted(surface["key_ratio"].unique(), reverse=True):
        row = (perplexity.get((key_ratio, value_ratio)) for value_ratio in value_ratios)
        table.add_row(f"{key_ratio:g}", *("-" if value is None else f"{value:.5g}" for value in row))
    return table


def _notes_on_data(record: Record) -> list[str]:
    """Say what was evaluated on, and what of the data was not used."""
    evaluation = record.splits["evaluation"]
    data = f"{evaluation['examples']} examples, {evaluation['tokens']:,} tokens of {evaluation['dataset']}"
    kind = "the same examples: in sample" if evaluation["in_sample"] else "held out"
    notes = [f"cost measured on {data}, {evaluation['language']} ({kind})"]
    for name, split in record.splits.items():
        if split["left_out_rows"]:
            notes.append(f"{name}: {split['left_out_rows']} rows without text in all mapped columns were left out")
        if split["cut_examples"]:
            notes.append(f"{name}: {split['cut_examples']} examples were cut to max_length")
    if evaluation["shared_examples"]:
        notes.append(f"evaluation: {evaluation['shared_examples']} examples that also calibrate were left out")
    return notes


def _cost_table(surface: pd.DataFrame) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("budget")
    for heading in ("kept", "keys", "values", "break-even tokens", "perplexity", "delta NLL", "from", "to"):
        table.add_column(heading, justify="right")
    for _, row in surface.iterrows():
        kept = [f"{row[name]:.3f}" for name in ("cost_ratio", "kept_keys", "kept_values")]
        even = f"{row['break_even_tokens']:,.0f}" if math.isfinite(row["break_even_tokens"]) else "-"
        costs = [f"{row[name]:.4f}" for name in ("delta_nll", "delta_nll_low", "delta_nll_high")]
        table.add_row(str(row["asked"]), *kept, even, f"{row['perplexity']:.4f}", *costs)
    return table


def _gate_table(record: Record) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("gate")
    table.add_column("value", justify="right")
    table.add_column("limit", justify="right")
    table.add_column("passed")
    for name, gate in record.gates.items():
        table.add_row(name, f"{gate.value:.3g}", f"{gate.limit:.3g}", "yes" if gate.passed else "NO")
    return table
