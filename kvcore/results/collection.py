"""Many cells as tables."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from kvcore.cell import RECORD_NAME
from kvcore.results.record import FINISHED, SCHEMA_VERSION
from kvcore.schema import SettingError, UserError, first_line

CELL_COLUMNS = [
    "model", "dataset", "language", "evaluated_on", "evaluated_language", "rank_budget", "ner_key", "ner_value",
    "tokens", "tokens_per_dim", "converged", "perplexity", "grid_mean_nd_ppl", "judged", "status", "id",
    "spectrum_id", "path",
]  # fmt: skip


def collect(output_root: Path) -> pd.DataFrame:
    """Return one row for every finished cell, by model, dataset and language.

    Args:
        output_root: Folder with `runs/`.

    Returns:
        The columns `CELL_COLUMNS`.

    Raises:
        SettingError: There is no finished cell.
        UserError: A record cannot be read.
    """
    paths = sorted((output_root / "runs").glob(f"*/*/*/{RECORD_NAME}"))
    if not paths:
        raise SettingError("output_root", str(output_root), "no finished cell under it")
    cells = pd.DataFrame([_row(path) for path in paths], columns=CELL_COLUMNS)
    return cells.sort_values(["model", "dataset", "language", "id"], ignore_index=True)


def trusted(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells all of whose gates passed."""
    return cells[cells["status"] == FINISHED]


def cell_table(record: str, name: str) -> pd.DataFrame:
    """Read one of the tables beside a record.

    Args:
        record: Path of the record.
        name: `layers`, `perplexity`, `likelihoods`, ...

    Raises:
        UserError: It is missing or cannot be read.
    """
    path = Path(record).with_name(f"{name}.parquet")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}); remove its folder to run that cell anew"
        ) from error


def ner_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the published layout: rows (dataset, language), columns (model, `K` or `V`), NER.

    A star marks what is not converged, an empty field a cell that is missing.

    Raises:
        UserError: Two spectra belong in one field.
    """
    cells = cells.drop_duplicates(["model", "dataset", "language", "spectrum_id"])
    twice = cells[cells.duplicated(["model", "dataset", "language"], keep=False)]
    if len(twice):
        raise UserError("these cells belong in one field of the table:\n" + "\n".join(twice["path"]))
    long = cells.melt(
        ["model", "dataset", "language", "converged"], ["ner_key", "ner_value"], var_name="kind", value_name="ner"
    )
    long["kind"] = long["kind"].map({"ner_key": "K", "ner_value": "V"})
    long["ner"] = [
        f"{ner:.4f}{'' if converged else '*'}" for ner, converged in zip(long["ner"], long["converged"], strict=True)
    ]
    return (
        long.pivot(index=["dataset", "language"], columns=["model", "kind"], values="ner").fillna("").sort_index(axis=1)
    )


def _row(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {record['schema_version']}, expected {SCHEMA_VERSION}")
        settings = record["settings"]
        return {
            "model": settings["model"]["name"],
            "dataset": settings["dataset"]["name"],
            "language": settings["language"]["name"],
            "evaluated_on": record["splits"]["evaluation"]["dataset"],
            "evaluated_language": record["splits"]["evaluation"]["language"],
            "rank_budget": settings["rank_budget"]["name"],
            "ner_key": record["ner"]["key"],
            "ner_value": record["ner"]["value"],
            "perplexity": record["perplexity"]["baseline"],
            "grid_mean_nd_ppl": record["perplexity"]["grid_mean_nd_ppl"],
            "judged": record["judged"] is not None,
            "path": str(path),
        } | {name: record[name] for name in ("tokens", "tokens_per_dim", "converged", "status", "id", "spectrum_id")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be used ({type(error).__name__}: {error})") from error
