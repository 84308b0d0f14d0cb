"""Many cells as one table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from kvcore.cell import RECORD_NAME
from kvcore.results.record import FINISHED, SCHEMA_VERSION, UNTRUSTED
from kvcore.schema import SettingError, UserError, first_line

# What a spectrum depends on, by the names that a user gives: columns of the table of cells.
SPECTRUM_SETTINGS = (
    "model.revision", "model.dtype", "model.attention", "model.template", "dataset.revision", "dataset.split",
    "dataset.layout", "dataset.prompt", "dataset.max_examples", "dataset.max_tokens", "dataset.max_length",
    "evaluation.share", "capture.point", "capture.skip_first_tokens", "spectrum.precision", "seed",
)  # fmt: skip
_NAMES = ["model", "dataset", "language", "evaluated_on", "evaluated_language"]
_RESULTS = [
    "rank_budget", "surface", "ner_key", "ner_value", "tokens", "kv_dim", "tokens_per_dim", "converged", "perplexity",
    "perplexity_low", "perplexity_high", "grid_mean_nd_ppl", "grid_mean_nd_ppl_low", "grid_mean_nd_ppl_high", "judged",
    "grid_mean_score", "grid_mean_score_low", "grid_mean_score_high", "status", "failed_gates",
]  # fmt: skip
CELL_COLUMNS = [
    *_NAMES, *_RESULTS, "seconds", "peak_memory_bytes", "device", "git_commit", *SPECTRUM_SETTINGS,
    "id", "spectrum_id", "path",
]  # fmt: skip
_NUMBERS = ("ner_", "perplexity", "grid_mean_", "tokens_per_dim", "seconds")
_TYPES = {name: "float64" for name in CELL_COLUMNS if name.startswith(_NUMBERS)} | {
    "tokens": "int64", "kv_dim": "int64", "peak_memory_bytes": "int64", "converged": "bool", "judged": "bool",
}  # fmt: skip
_LIMITS = ("target", "max_examples", "max_tokens")  # of evaluation
_MOST = 2**63  # what a column of integers holds


@dataclass(frozen=True)
class Problem:
    """Something under an output_root that is not used.

    Attributes:
        path: Of the record, or of the file.
        reason: Why, in words that follow the path.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        """Say both in one line."""
        return f"{self.path}: {self.reason}"


class Collected(NamedTuple):
    """What lies under an output_root.

    Attributes:
        cells: One row for each readable record, by model, dataset, language and id: the columns `CELL_COLUMNS`.
            `kv_dim` is the largest of all layers, `surface` what the cost over a grid is of
            (ratios, target, limits), `seconds` the sum over the stages.
        problems: Records that are not among them.
    """

    cells: pd.DataFrame
    problems: list[Problem]


def collect(output_root: Path) -> Collected:
    """Read the record of every finished cell.

    Args:
        output_root: Folder with `runs/`.

    Raises:
        SettingError: There is no record.
    """
    paths = sorted((output_root / "runs").glob(f"*/*/*/{RECORD_NAME}"))
    if not paths:
        raise SettingError("output_root", str(output_root), "no finished cell under it")
    rows, problems = [], []
    for path in paths:
        try:
            row = _row(json.loads(path.read_text(encoding="utf-8")))
            _refuse_half_characters(row)
            rows.append(row | {"path": str(path)})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            problems.append(Problem(str(path), _reason(error)))
    cells = _typed(rows)
    for cleared in (_without_contradictions, _without_foreign_spectra):
        cells, found = cleared(cells)
        problems += found
    cells = cells.sort_values(["model", "dataset", "language", "id"], ignore_index=True)
    return Collected(cells, sorted(problems, key=lambda problem: problem.path))


def no_cells() -> Collected:
    """Return what `collect` would of a folder without a record, were that not an error."""
    return Collected(_typed([]), [])


def trusted(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells all of whose gates passed."""
    return cells[cells["status"] == FINISHED]


def on_own_data(cells: pd.DataFrame) -> "pd.Series[bool]":
    """Say of each cell whether it was evaluated on the data that its spectra are from."""
    return (cells["dataset"] == cells["evaluated_on"]) & (cells["language"] == cells["evaluated_language"])


def cell_table(record: str, name: str, *columns: str) -> pd.DataFrame:
    """Read one of the tables beside a record.

    Args:
        record: Path of the record.
        name: `layers`, `perplexity`, `likelihoods`, ...
        columns: Those that it must have, and rows of them.

    Raises:
        UserError: It is missing or cannot be read, or does not have these columns, or no row of them.
    """
    path = Path(record).with_name(f"{name}.parquet")
    try:
        table = pd.read_parquet(path)
        if missing := [column for column in columns if column not in table]:
            raise ValueError(f"it has no column {', '.join(missing)}")
        if columns and table.empty:
            raise ValueError("it has no rows")
        return table
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}); remove its folder to run that cell anew"
        ) from error


def _typed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=CELL_COLUMNS).astype(_TYPES)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    if record["schema_version"] != SCHEMA_VERSION:
        version = record["schema_version"]
        raise ValueError(f"has schema version {version}; only {SCHEMA_VERSION} can be read: run that cell anew")
    if record["status"] not in (FINISHED, UNTRUSTED):
        raise ValueError(f"has the unknown status {record['status']!r}")
    settings, evaluation = record["settings"], record["splits"]["evaluation"]
    tokens, tokens_per_dim = _count(record["tokens"]), float(record["tokens_per_dim"])
    budget, perplexity, judged = settings["rank_budget"], record["perplexity"], record["judged"]
    return {
        "model": str(settings["model"]["name"]),
        "dataset": str(settings["dataset"]["name"]),
        "language": str(settings["language"]["name"]),
        "evaluated_on": str(evaluation["dataset"]),
        "evaluated_language": str(evaluation["language"]),
        "rank_budget": str(budget["name"]),
        "surface": _surface(budget, settings["evaluation"]),
        "ner_key": _share(record["ner"]["key"]),
        "ner_value": _share(record["ner"]["value"]),
        "tokens": tokens,
        "kv_dim": _count(round(tokens / tokens_per_dim)) if tokens_per_dim else 0,
        "tokens_per_dim": tokens_per_dim,
        "converged": record["converged"] is True,
        "judged": judged is not None,
        "failed_gates": ", ".join(name for name, gate in record["gates"].items() if not gate["passed"]),
        "seconds": sum(record["seconds"].values()),
        **_with_interval("baseline", perplexity, column="perplexity"),
        **_with_interval("grid_mean_nd_ppl", perplexity),
        **_with_interval("grid_mean_score", judged or {"grid_mean_score": None}),
        "peak_memory_bytes": _count(record["peak_memory_bytes"]),
        **{name: str(record[name]) for name in ("status", "id", "spectrum_id", "device")},
        "git_commit": record["git_commit"] or "",
        **{name: _setting(settings, name) for name in SPECTRUM_SETTINGS},
    }


def _surface(budget: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str | None:
    """Say what the mean cost over a grid is of: only costs of the same can be compared."""
    if "key_ratios" not in budget:
        return None
    limits = [f"{name}={evaluation[name]}" for name in _LIMITS if evaluation[name] is not None]
    return ", ".join([f"{budget['key_ratios']} x {budget['value_ratios']}", *limits])


def _with_interval(name: str, found: Mapping[str, Any], column: str = "") -> dict[str, float | None]:
    """Return a number of a record and the ends of its interval; the record holds what is not finite as strings."""
    low, high = found.get(f"{name}_interval") or (None, None)
    numbers = {"": found[name], "_low": low, "_high": high}
    return {(column or name) + end: None if number is None else float(number) for end, number in numbers.items()}


def _count(value: float) -> int:
    if not 0 <= value < _MOST:
        raise ValueError(f"has a number of tokens or bytes of {value}")
    return int(value)


def _share(value: float) -> float:
    if not 0 <= float(value) <= 1:
        raise ValueError(f"has an NER of {value}, which is not between 0 and 1")
    return float(value)


def _refuse_half_characters(row: Mapping[str, Any]) -> None:
    """Raise a ValueError where a text cannot be written into a file: JSON can hold half of a surrogate pair."""
    for name, value in row.items():
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"has {name} = {value!a}, which is not text") from error


def _setting(settings: Mapping[str, Any], name: str) -> str | None:
    group, _, field = name.partition(".")
    value = settings.get(group, {}).get(field) if field else settings.get(group)
    return None if value is None else str(value)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not complete JSON ({error})"
    if isinstance(error, KeyError):
        return f"is not a record of kvcore: it has no {error}"
    if isinstance(error, TypeError | AttributeError):
        return f"is not a record of kvcore ({first_line(error)})"
    return first_line(error)


def _without_contradictions(cells: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Leave out all records of an id that has several results, and all copies but one of a record.

    An id may have several names: they are no part of it.
    """
    problems, dropped = [], []
    for identity, group in cells[cells.duplicated("id", keep=False)].groupby("id"):
        paths = list(group["path"])
        if len(group[_RESULTS].drop_duplicates()) > 1:
            dropped += list(group.index)
            problems += [_named(path, paths, f"records of the id {identity} differ, none is used") for path in paths]
            continue
        copies = group[group.duplicated(_NAMES)]
        dropped += list(copies.index)
        problems += [Problem(path, f"is a copy of {paths[0]}, which is used") for path in copies["path"]]
    return cells.drop(index=dropped), problems


def _without_foreign_spectra(cells: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Leave out records that say they have one spectrum, but not the same numbers of it."""
    numbers = ["ner_key", "ner_value", "tokens", "converged"]
    several = cells.groupby("spectrum_id")[numbers].transform("nunique").gt(1).any(axis=1)
    problems = []
    for identity, group in cells[several].groupby("spectrum_id"):
        paths = list(group["path"])
        problems += [_named(path, paths, f"records of the spectrum {identity} differ, none is used") for path in paths]
    return cells[~several], problems


def _named(path: str, paths: list[str], reason: str) -> Problem:
    return Problem(path, f"{reason}; see {', '.join(other for other in paths if other != path)}")
