"""What a person sees at the end of a cell."""

import math
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from kvcore.results.printing.lines import print_lines
from kvcore.results.record import UNTRUSTED, Record
from kvcore.spectrum.tables import model_level_ner


def print_summary(
    console: Console, record: Record, surface: pd.DataFrame, scores: pd.DataFrame | None, paths: list[Path]
) -> None:
    """Print the normalized effective ranks, the perplexity surface, the scores, the gates and what was written."""
    settings = record.settings
    console.print(f"\n{settings['model']['name']} on {settings['dataset']['name']}, {settings['language']['name']}")
    for line in _notes_on_data(record):
        console.print(line)
    if record.status == UNTRUSTED:
        console.print("A GATE FAILED: these numbers cannot be trusted")
    console.print(_ner_table(record))
    console.print(_perplexity_line(record), highlight=False, soft_wrap=True)
    if settings["rank_budget"]["name"] == "grid":
        console.print("perplexity by rank ratio (down: keys, across: values)")
        console.print(_surface_table(surface))
    elif len(surface) > 1:
        console.print("cost by budget (kept: share of the full cache; delta NLL in nats per token, 95 % interval)")
        console.print(_cost_table(surface))
    if scores is not None:
        console.print("scores of the judge, 1 to 10 (95 % interval over prompts)")
        console.print(_score_table(scores))
        for line in _notes_on_scores(record):
            console.print(line, highlight=False, soft_wrap=True)
    console.print("gates")
    console.print(_gate_table(record))
    print_lines(console, paths)


def print_pool(console: Console, layers: pd.DataFrame) -> None:
    """Print the model-level NER of a layer table, and whether it has settled."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("NER keys", "NER values", "tokens", "converged"):
        table.add_column(heading, justify="right")
    ner = model_level_ner(layers)
    settled = "yes" if layers["converged"].all() else "NO"
    table.add_row(f"{ner['key']:.4f}", f"{ner['value']:.4f}", f"{layers['tokens'].min():,}", settled)
    console.print(table)


def _ner_table(record: Record) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("NER keys", "NER values", "tokens", "per dim", "converged"):
        table.add_column(heading, justify="right")
    table.add_row(
        f"{record.ner['key']:.4f}",
        f"{record.ner['value']:.4f}",
        f"{record.tokens:,}",
        f"{record.tokens_per_dim:.1f}",
        "yes" if record.converged else "NO",
    )
    return table


def _perplexity_line(record: Record) -> str:
    found = record.perplexity
    low, high = found["baseline_interval"]
    line = f"perplexity {found['baseline']:.4f} ({low:.4g}, {high:.4g})"
    if found["grid_mean_nd_ppl"] is not None:
        low, high = found["grid_mean_nd_ppl_interval"]
        line += f", mean ND-PPL {found['grid_mean_nd_ppl']:.4f} ({low:.3g}, {high:.3g})"
    return f"{line}; in brackets: 95 % intervals over examples"


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


def _notes_on_scores(record: Record) -> list[str]:
    """Say what else a reader of the scores must know."""
    judged, notes = record.judged or {}, []
    if not judged["carries_information"]:
        notes.append("The judge gives the same score to everything: its scores carry no information.")
    if judged["empty"]:
        notes.append(f"{judged['empty']} of {judged['items']} answers are empty: each scores 1, and nobody was asked.")
    if judged["missing"]:
        reasons = ", ".join(f"{reason}: {times}" for reason, times in judged["missing"].items())
        notes.append(f"missing scores are left out of the means ({reasons})")
    return notes


def _score_table(scores: pd.DataFrame) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("budget", no_wrap=True)
    for heading in ("score", "judged", "missing", "empty"):
        table.add_column(heading, justify="right", no_wrap=True)
    for _, row in scores.iterrows():
        score = f"{row['score']:.2f} ({row['score_low']:.2f}, {row['score_high']:.2f})"
        table.add_row(str(row["asked"]), score, *(str(row[name]) for name in ("judged", "missing", "empty")))
    return table


def _cost_table(surface: pd.DataFrame) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("budget", no_wrap=True)
    for heading in ("kept", "keys", "values", "break even\n(tokens)", "delta NLL"):
        table.add_column(heading, justify="right", no_wrap=True)
    for _, row in surface.iterrows():
        kept = [f"{row[name]:.3f}" for name in ("cost_ratio", "kept_keys", "kept_values")]
        even = f"{row['break_even_tokens']:,.0f}" if math.isfinite(row["break_even_tokens"]) else "-"
        delta = f"{row['delta_nll']:.3f} ({row['delta_nll_low']:.3f}, {row['delta_nll_high']:.3f})"
        table.add_row(str(row["asked"]), *kept, even, delta if row["point"] else "0")
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
