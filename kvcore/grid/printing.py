"""How a grid stands, for a person."""

from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvcore.grid.states import STATES


def print_states(console: Console, states: pd.DataFrame, shown: Sequence[str] = STATES) -> None:
    """Print how many cells are in each state, and the cells themselves with the reason.

    Args:
        console: Where to.
        states: See `kvcore.grid.states.states`.
        shown: The states whose cells are listed.
    """
    for name, cells in states.groupby("grid", sort=False):
        grid = str(name) or "cells of no grid"
        counts = cells["state"].value_counts()
        told = ", ".join(f"{counts[state]} {state}" for state in STATES if state in counts)
        console.print(f"{grid}: {len(cells)} cells, {told}", highlight=False, markup=False)
    listed = states[states["state"].isin(list(shown))]
    if listed.empty:
        return
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("state", "model", "data", "budget"):
        table.add_column(heading, no_wrap=True)
    table.add_column("why, or where", overflow="fold")
    for _, cell in listed.iterrows():
        data = f"{cell['dataset']}, {cell['language']}".rstrip(", ")
        row = (cell["state"], cell["model"], data, cell["rank_budget"], cell["reason"] or cell["folder"])
        table.add_row(*(Text(str(field)) for field in row))
    console.print(table)
