"""What a tracker shows of a cell, read from the cell's folder."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from kvcore.cell import FAILURE_NAME, RANKS_NAME, RECORD_NAME, SETTINGS_NAME

FAILED = "failed"
_SHOWN = ("layers", "heads", "convergence", "perplexity", "scores")
_KEPT = (*_SHOWN, "likelihoods", "splits")  # not answers and judgements: the texts stay where they are
_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True)
class Content:
    """What a tracker shows of one cell.

    Attributes:
        id: Identity of the cell.
        name: What was measured on what, for people.
        settings: All settings of the cell but those of the tracker.
        summary: The record without the settings; of a failed cell status, stage and error.
        tags: What to filter by: `failed`, `untrusted`, `not-converged`.
        curves: Points of curves, by metric: NER over the layers, and over the tokens seen.
        tables: Tables with at most a few rows for each layer, head or budget, by name.
        images: Figures.
        files: The record, the settings and all tables of numbers.
    """

    id: str
    name: str
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    tags: tuple[str, ...]
    curves: list[dict[str, float]] = field(default_factory=list)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    images: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether the cell has failed."""
        return FAILED in self.tags


def mirrored_cells(output_root: Path) -> list[Path]:
    """Return the folders of all finished and failed cells; what is under way or interrupted is not mirrored."""
    ended = {path.parent for name in (RECORD_NAME, FAILURE_NAME) for path in output_root.glob(f"runs/*/*/*/{name}")}
    return sorted(ended)


def read_content(folder: Path) -> Content:
    """Read what a cell has left.

    Args:
        folder: A cell's folder with `record.json` or `failure.json`.

    Raises:
        OSError: A file is missing or cannot be read.
        ValueError: A file does not hold what it should.
        KeyError: Likewise.
    """
    finished = (folder / RECORD_NAME).is_file()
    result = _with_numbers(json.loads((folder / (RECORD_NAME if finished else FAILURE_NAME)).read_text("utf-8")))
    settings = yaml.safe_load((folder / SETTINGS_NAME).read_text("utf-8"))
    tables = {name: path for name in _KEPT if (path := folder / f"{name}.parquet").is_file()}
    shown = {name: pd.read_parquet(path) for name, path in tables.items() if name in _SHOWN}
    names = (SETTINGS_NAME, RECORD_NAME, FAILURE_NAME, RANKS_NAME)
    spectrum = folder.parents[3] / "spectra" / str(result.get("spectrum_id")) / "spectrum.json"
    return Content(
        id=folder.name,
        name=_named(settings),
        settings={name: value for name, value in settings.items() if name != "tracker"},
        summary={name: value for name, value in result.items() if name != "settings"}
        if finished
        else {"status": FAILED, "stage": result["stage"], "error": result["error"]},
        tags=_tags(result) if finished else (FAILED,),
        curves=_curves(shown),
        tables=shown,
        images=sorted((folder / "figures").glob("*.png")),
        files=[path for name in names if (path := folder / name).is_file()]
        + [*tables.values(), *([spectrum] if spectrum.is_file() else [])],
    )


def _with_numbers(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Give NaN and infinities, which the record holds as strings, back as numbers."""
    if isinstance(value, Mapping):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value


def _named(settings: Mapping[str, Any]) -> str:
    names = [settings[group]["name"] for group in ("model", "dataset", "language", "rank_budget")]
    held_out = (settings.get("held_out") or {}).get("dataset")
    return ", ".join(names) + (f", evaluated on {held_out['name']}" if held_out else "")


def _tags(record: Mapping[str, Any]) -> tuple[str, ...]:
    untrusted = () if record["status"] == "finished" else (str(record["status"]),)
    return untrusted if record["converged"] else (*untrusted, "not-converged")


def _curves(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, float]]:
    """Return NER of keys and values over the layers, and, as a mean over the layers, over the tokens seen."""
    points = []
    if "layers" in tables:
        points += _points("layers", "layer", tables["layers"])
    if "convergence" in tables:
        seen = tables["convergence"]
        measured = seen.groupby("tokens")["ner"].transform("size")
        points += _points("convergence", "tokens", seen[measured == measured.max()])  # where all layers have a point
    return points


def _points(name: str, x: str, table: pd.DataFrame) -> list[dict[str, float]]:
    means = table.pivot_table(index=x, columns="kind", values="ner")
    return [
        {f"{name}/{x}": float(place)} | {f"{name}/ner_{kind}": float(ner) for kind, ner in means.loc[place].items()}
        for place in means.index
    ]
