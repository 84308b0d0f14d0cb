"""What a person sees of many cells."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from kvcore.results.findings import Finding
from kvcore.results.ner_table import LEGEND, NOT_CONVERGED, laid_out, notes
from kvcore.results.publication import Publication
from kvcore.results.transfer import Transfer

_ANY_WIDTH = 100_000
_NOTE = f"{NOT_CONVERGED} {LEGEND[NOT_CONVERGED]}"


def print_publication(console: Console, publication: Publication) -> None:
    """Print the table, the published values beside it, and the findings."""
    if len(publication.fields):
        print_ner_table(console, publication.fields)
    if len(publication.published):
        print_against_published(console, publication.published)
    print_findings(console, publication.findings, publication.left_out)


def print_ner_table(console: Console, fields: pd.DataFrame) -> None:
    """Print NER of keys (K) and values (V) in the published layout, see `kvcore.results.ner_table.ner_fields`."""

    def written(field: Any) -> str:  # noqa: ANN401 - a row
        style = "bold " * field.lowest_of_row + "italic" * field.lowest_of_column
        return f"[{style}]{field.ner:.4f}[/]{field.mark}" if style else f"{field.ner:.4f}{field.mark}"

    ner = laid_out(fields, written)
    table = Table(box=box.SIMPLE, pad_edge=False)
    for level, name in enumerate(ner.index.names):
        table.add_column(str(name), min_width=max(map(len, ner.index.get_level_values(level))))
    for column in ner.columns:
        table.add_column(escape("\n".join(column)), justify="right", min_width=len(column[0]))
    for labels, values in zip(ner.index, ner.to_numpy(), strict=True):
        table.add_row(*map(escape, labels), *values)
    _print_whole(console, table)
    for note in notes(fields):
        console.print(note, highlight=False)


def print_against_published(console: Console, found: pd.DataFrame) -> None:
    """Print measured beside published NER, see `kvcore.results.published.against_published`."""
    console.print("\nmeasured against published NER (arXiv 2602.05929)", highlight=False)
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("dataset", "language", "model", "kind"):
        table.add_column(heading, no_wrap=True)
    for heading in ("measured", "published", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.itertuples():
        measured = f"{row.measured:.4f}{'' if row.converged else NOT_CONVERGED}"
        names = (str(row.dataset), str(row.language), str(row.model), str(row.kind))
        table.add_row(*names, measured, f"{row.published:.3f}", f"{row.difference:+.4f}")
    console.print(table)


def print_findings(console: Console, found: Iterable[Finding], left_out: str) -> None:
    """Print each claim and what this grid says of it, see `kvcore.results.findings.findings`."""
    console.print("\nfindings", highlight=False)
    for finding in found:
        console.print(f"- {finding.claim}\n  {finding.statement}", markup=False, highlight=False, soft_wrap=True)
    if left_out:
        console.print(left_out, highlight=False)


def _print_whole(console: Console, table: Table) -> None:
    """Print a table wider than the terminal rather than without some of its columns, or of its names."""
    table.width = Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), table).maximum
    console.print(table, crop=False)


def print_comparison(console: Console, comparison: pd.DataFrame) -> None:
    """Print what rank budgets cost, see `kvcore.results.comparison.compare_budgets`."""
    for (model, dataset, language, on, on_language), group in comparison.groupby(
        ["model", "dataset", "language", "evaluated_on", "evaluated_language"]
    ):
        mark = "" if group["converged"].all() else NOT_CONVERGED
        console.print(
            f"\n{model}: ranks from {dataset}, {language}{mark}; cost on {on}, {on_language} (95 % intervals)",
            markup=False,
        )
        if mark:
            console.print(_NOTE, highlight=False)
        table = Table(box=box.SIMPLE, pad_edge=False)
        table.add_column("budget", justify="right")
        table.add_column("strategy")
        for heading in ("keys", "values", "delta NLL", "of uniform"):
            table.add_column(heading, justify="right")
        for _, row in group.iterrows():
            kept = [f"{row[name]:.2f}" for name in ("kept_keys", "kept_values")]
            costs = [f"{row[n]:.3f} ({row[f'{n}_low']:.3f}, {row[f'{n}_high']:.3f})" for n in ("delta_nll", "share")]
            table.add_row(f"{row['budget']:g}", escape(str(row["strategy"])), *kept, *costs)
        _print_whole(console, table)


def print_transfers(console: Console, matrices: Iterable[Transfer]) -> None:
    """Print transfer matrices, see `kvcore.results.transfer.transfers`."""
    for transfer in matrices:
        console.print(
            f"\n{transfer.model}, {transfer.asked}: delta NLL (down: bases and ranks from, across: cost on)",
            markup=False,
        )
        table = Table(box=box.SIMPLE, pad_edge=False)
        table.add_column("")
        for name in transfer.delta_nll.columns:
            table.add_column(escape(name), justify="right")
        for place, (basis, row) in enumerate(transfer.marked.iterrows()):
            costs = ["-" if math.isnan(cost) else f"{cost:.4f}" for cost in row]
            costs[place] = escape(f"[{costs[place]}]")
            table.add_row(escape(str(basis)), *costs)
        _print_whole(console, table)
        if transfer.not_converged:
            console.print(_NOTE, highlight=False)


_METRICS = {
    "ner": "NER",
    "ner_energy": "NER (energy)",
    "rank_at_energy_0.95": "rank at 95 %",
    "stable_rank": "stable rank",
}
_KINDS = {"key": "K", "value": "V", "both": "K+V"}


def print_correlations(console: Console, correlations: pd.DataFrame) -> None:
    """Print correlations, see `kvcore.results.correlation.correlate`."""
    for (model, cost), group in correlations.groupby(["model", "cost"], sort=False):
        cells, settled = group["cells"].iloc[0], group["converged"].iloc[0]
        mark = "" if settled == cells else f"; {cells - settled} of them {LEGEND[NOT_CONVERGED]}"
        console.print(f"\n{model}, {cost}, {cells} cells (95 % intervals over datasets){mark}", markup=False)
        table = Table(box=box.SIMPLE, pad_edge=False)
        table.add_column("metric", no_wrap=True)
        for heading in ("Pearson", "Spearman", "Kendall"):
            table.add_column(heading, justify="right", no_wrap=True)
        for _, row in group.iterrows():
            found = [
                f"{row[name]:.2f} ({row[f'{name}_cells_low']:.2f}, {row[f'{name}_cells_high']:.2f})"
                for name in ("pearson", "spearman", "kendall")
            ]
            table.add_row(f"{_METRICS[row['metric']]} {_KINDS[row['kind']]}", *found)
        _print_whole(console, table)
