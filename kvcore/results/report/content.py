"""What a report shows, gathered from records, tables and states."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from kvcore.cell import FAILURE_NAME
from kvcore.results.collection import cell_table
from kvcore.results.comparison import compare_budgets
from kvcore.results.record import FINISHED, UNTRUSTED, finite
from kvcore.results.report.costs import cost_points, fitted_lines
from kvcore.results.transfer import transfers
from kvcore.schema import UserError

STATES = ["done", "untrusted", "failed", "interrupted", "running", "pending"]
CELL_COLUMNS = [
    "id", "state", "model", "dataset", "language", "evaluated_on", "evaluated_language", "rank_budget", "ner_key",
    "ner_value", "converged", "tokens", "tokens_per_dim", "perplexity", "grid_mean_nd_ppl", "gpt_score", "spectrum_id",
    "grid", "reason", "folder",
]  # fmt: skip
_TABLES = ["layers", "convergence", "perplexity"]


class Views(NamedTuple):
    """What lies behind the figures.

    Attributes:
        tables: By view; those that cannot be shown are not there.
        reasons: By view, why it cannot be shown.
    """

    tables: dict[str, pd.DataFrame]
    reasons: dict[str, str]


def read_records(cells: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Read the record of every cell, by id; one that has gone since it was collected is left out."""
    return {str(key): record for key, path in zip(cells["id"], cells["path"], strict=True) if (record := _json(path))}


def all_cells(
    cells: pd.DataFrame, states: pd.DataFrame, records: Mapping[str, Mapping[str, Any]], folder: Path
) -> pd.DataFrame:
    """Return one row for every cell of the grid, those without a record included.

    Args:
        cells: From `kvcore.results.collection.collect`.
        states: From `kvcore.grid.states`.
        records: From `read_records`.
        folder: Where the page will lie; folders of cells are given relative to it.

    Returns:
        The columns `CELL_COLUMNS`; `state` is one of `STATES`.
    """
    states = states.assign(id=[Path(place).name for place in states["folder"]]).drop_duplicates("id")
    judged = {key: record.get("judged") or {} for key, record in records.items()}
    finished = cells.assign(
        id=cells["id"].astype(str),
        state=cells["status"].map({FINISHED: "done", UNTRUSTED: "untrusted"}),
        gpt_score=[judged.get(str(key), {}).get("grid_mean_score") for key in cells["id"]],
        folder=[str(Path(path).parent) for path in cells["path"]],
    ).merge(states[["id", "grid"]], on="id", how="left")
    missing = states[(states["state"] != "done") & ~states["id"].isin(finished["id"])]
    everything = [part for part in (finished, missing) if len(part)]
    table = (pd.concat(everything, ignore_index=True) if everything else finished).reindex(columns=CELL_COLUMNS)
    table["folder"] = [os.path.relpath(place, folder) for place in table["folder"]]
    return table.sort_values(["model", "dataset", "language", "rank_budget", "id"], ignore_index=True)


def views(cells: pd.DataFrame, records: Mapping[str, Mapping[str, Any]]) -> Views:
    """Return the tables behind the figures of many cells: costs, fits, budgets and transfer."""
    points = cost_points(cells, records)
    tables, reasons = {"cost": points, "fits": fitted_lines(points)}, {}
    if points.empty:
        reasons["cost"] = "no trusted cell has a rank budget that is a grid (rank_budget=grid)"
    sources: dict[str, Callable[[], pd.DataFrame]] = {
        "budgets": lambda: compare_budgets(cells),
        "transfer": lambda: _long_transfers(cells),
    }
    for view, source in sources.items():
        try:
            tables[view] = source()
        except UserError as error:
            reasons[view] = str(error)
    return Views(tables, reasons)


def cell_details(
    table: pd.DataFrame, paths: Mapping[str, str], records: Mapping[str, Mapping[str, Any]], folder: Path, limit: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield, by id, what the page of each cell shows: its record and tables, or its failure.

    Args:
        table: From `all_cells`.
        paths: Of the records, by id.
        records: From `read_records`.
        folder: Where the page will lie.
        limit: How many finished cells have their tables on the page.
    """
    left = limit
    for key, state, place in zip(table["id"], table["state"], table["folder"], strict=True):
        if key in records:
            found = _tables_of(paths[key], records[key]) if left > 0 else {"left_out": True}
            left -= 1
            yield key, {"record": records[key]} | found
        elif state == "failed" and (failure := _json(folder / place / FAILURE_NAME)):
            yield key, {"failure": failure}


def columns_of(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a table as JSON can carry it, exactly: a list for each column, None for what is missing."""
    return {
        str(name): finite([None if missing else value for value, missing in zip(values, values.isna(), strict=True)])
        for name, values in table.astype(object).items()
    }


def _tables_of(record_path: str, record: Mapping[str, Any]) -> dict[str, Any]:
    names = [*_TABLES, "scores"] if record.get("judged") else _TABLES
    try:
        return {"tables": {name: columns_of(cell_table(record_path, name)) for name in names}}
    except UserError as error:
        return {"tables": {}, "unreadable": str(error)}


def _long_transfers(cells: pd.DataFrame) -> pd.DataFrame:
    parts = [
        transfer.delta_nll.rename_axis(index="basis", columns="evaluated")
        .stack()
        .rename("delta_nll")
        .reset_index()
        .assign(model=transfer.model, asked=transfer.asked)
        for transfer in transfers(cells)
    ]
    return pd.concat(parts, ignore_index=True)


def _json(path: str | Path) -> dict[str, Any] | None:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def no_states() -> pd.DataFrame:
    """Return the states of no cells."""
    return pd.DataFrame(
        columns=["grid", "model", "dataset", "language", "rank_budget", "state", "reason", "folder"], dtype=object
    )

