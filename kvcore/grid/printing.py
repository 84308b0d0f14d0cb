"""How a grid stands, for a person."""

from collections.abc import Sequence

import pandas as pd
from rich.console import Console

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
    for _, cell in states[states["state"].isin(list(shown))].iterrows():
        data = f"{cell['dataset']}, {cell['language']}".rstrip(", ")
        told = f"  {cell['state']}: {cell['model']} on {data}, {cell['rank_budget']}".rstrip(", ")
        line = ": ".join(part for part in (told, cell["reason"], cell["folder"]) if part)
        console.print(line, soft_wrap=True, highlight=False, markup=False)
