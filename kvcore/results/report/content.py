"""What a report shows, gathered from records, tables and states."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from kvcore.cell import FAILURE_NAME
from kvcore.results.collection import CELL_COLUMNS, cell_table
from kvcore.results.comparison import compare_budgets
from kvcore.results.record import FINISHED, UNTRUSTED, finite
from kvcore.results.report.costs import cost_points, fitted_lines
from kvcore.results.transfer import transfers
from kvcore.schema import UserError

STATES = ["done", "untrusted", "unreadable", "failed", "interrupted", "running", "pending"]
STATE_COLUMNS = ["grid", "model", "dataset", "language", "rank_budget", "state", "reason", "folder"]
_SHOWN = ["id", "state", *(name for name in CELL_COLUMNS if name not in ("id", "path")), "grid", "reason", "folder"]
_TABLES = ["layers", "convergence", "perplexity"]


class Views(NamedTuple):
    """What lies behind the figures.

    Attributes:
        tables: By view; those that cannot be shown are not there.
        reasons: By view, why it cannot be shown.
    """

    tables: dict[str, pd.DataFrame]
    reasons: dict[str, str]


def all_cells(cells: pd.DataFrame, states: pd.DataFrame, page_folder: Path) -> pd.DataFrame:
    """Return one row for every cell of the grid, those without a record included.

    Args:
        cells: From `kvcore.results.collection.collect`.
        states: From `kvcore.grid.states.states`.
        page_folder: Where the page will lie; `folder` is given relative to it.

    Returns:
        Columns: those of `cells` but for `path`; state (one of `STATES`), grid, reason and folder. The id of a cell
        without a record is one of this page alone.
    """
    finished = cells.assign(
        state=cells["status"].map({FINISHED: "done", UNTRUSTED: "untrusted"}),
        reason=[f"failed gates: {gates}" if gates else "" for gates in cells["failed_gates"]],
        folder=[str(Path(path).parent) for path in cells["path"]],
    )
    finished["grid"] = finished["folder"].map(dict(zip(states["folder"], states["grid"], strict=True)))
    missing = states[~states["folder"].isin(finished["folder"])].reset_index(drop=True)
    unreadable = missing["state"] == "done"
    missing = missing.assign(
        id=[f"{Path(folder).name or 'cell'}-{number}" for number, folder in enumerate(missing["folder"])],
        state=missing["state"].mask(unreadable, "unreadable"),
        reason=missing["reason"].mask(unreadable, "its record cannot be used: see what could not be read"),
    )
    parts = [part.reindex(columns=_SHOWN).astype(object) for part in (finished, missing)]
    table = pd.concat(parts, ignore_index=True)
    table = table.where(table.notna(), None)
    table["folder"] = [os.path.relpath(folder, page_folder) if folder else None for folder in table["folder"]]
    return table.sort_values(["model", "dataset", "language", "rank_budget", "id"], ignore_index=True)


def told_apart(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells with an id each: one id may have several names, and the page finds cells by id."""
    earlier = cells.groupby("id").cumcount()
    return cells.assign(id=cells["id"].where(earlier == 0, cells["id"] + "-" + (earlier + 1).astype(str)))


def views(cells: pd.DataFrame) -> Views:
    """Return the tables behind the figures of many cells: costs, fits, budgets and transfer."""
    points = cost_points(cells)
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
    cells: pd.DataFrame, table: pd.DataFrame, page_folder: Path, limit: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield, by id, what the page of a cell shows: its record and tables, or its failure.

    Args:
        cells: From `kvcore.results.collection.collect`.
        table: From `all_cells`.
        page_folder: Where the page will lie.
        limit: How many finished cells, and how many failed ones.
    """
    for key, path in list(zip(cells["id"], cells["path"], strict=True))[:limit]:
        yield key, {"record": _json(Path(path))} | _tables_of(path)
    failed = table[(table["state"] == "failed") & table["folder"].notna()]
    for key, folder in list(zip(failed["id"], failed["folder"], strict=True))[:limit]:
        yield key, {"failure": _json(page_folder / folder / FAILURE_NAME)}


def columns_of(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a table as JSON can carry it, exactly: a list for each column, None for what is missing."""
    plain = table.astype(object).where(table.notna(), None)
    return {str(name): finite(values) for name, values in plain.to_dict("list").items()}


def _tables_of(record_path: str) -> dict[str, Any]:
    names = [*_TABLES, *(["scores"] if Path(record_path).with_name("scores.parquet").is_file() else [])]
    try:
        return {"tables": {name: columns_of(cell_table(record_path, name)) for name in names}}
    except UserError as error:
        return {"tables": {}, "unreadable": str(error)}


def _long_transfers(cells: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for transfer in transfers(cells):
        rows = transfer.delta_nll.rename_axis(index="basis", columns=None).reset_index()
        rows = rows.melt("basis", var_name="evaluated", value_name="delta_nll")
        settled = ~rows["basis"].isin(transfer.not_converged)
        parts.append(rows.assign(model=transfer.model, asked=transfer.asked, converged=settled))
    return pd.concat(parts, ignore_index=True)


def _json(path: Path) -> dict[str, Any] | None:
    """Read a record or a failure; None where it has gone since it was collected."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
