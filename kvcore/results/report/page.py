"""The page: content, styles, scripts and libraries in one file."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from plotly.offline import get_plotlyjs

from kvcore.cell import write_atomically
from kvcore.results.record import finite
from kvcore.results.report import content
from kvcore.results.report.definitions import DEFINITIONS

DETAILED_CELLS = 300
_SCRIPTS = ["data.js", "figures.js", "tables.js", "across.js", "cells.js", "page.js"]
_NO_PUBLISHED = ["dataset", "language", "model", "kind", "measured", "published", "difference", "converged"]


class WrittenReport(NamedTuple):
    """What was written.

    Attributes:
        path: The page.
        cells: How many cells it shows.
        left_out: How many finished cells have no tables and figures of their own on it.
    """

    path: Path
    cells: int
    left_out: int


def write_report(
    cells: pd.DataFrame,
    path: Path,
    *,
    states: pd.DataFrame | None = None,
    findings: Iterable[Any] = (),
    published: pd.DataFrame | None = None,
    problems: Iterable[Any] = (),
    title: str = "Key/value cache compressibility",
    detailed_cells: int = DETAILED_CELLS,
) -> WrittenReport:
    """Write one self-contained page that opens from disk without network.

    Args:
        cells: From `kvcore.results.collection.collect`; may be empty.
        path: Where to write the page, such as `outputs/report/index.html`.
        states: From `kvcore.grid.states`; without it, only finished cells are known.
        findings: From `kvcore.results.findings`.
        published: From `kvcore.results.published.against_published`.
        problems: What could not be collected.
        title: The page's title.
        detailed_cells: How many finished cells have their tables and figures on the page, about 50 KB each; the
            others have their record, and no lines in figures over layers.

    Raises:
        OSError: The page cannot be written.
    """
    states = content.no_states() if states is None else states
    published = pd.DataFrame(columns=_NO_PUBLISHED) if published is None else published
    records = content.read_records(cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = content.all_cells(cells, states, records, path.parent)
    shown = content.views(cells, records)
    paths = dict(zip(cells["id"].astype(str), cells["path"], strict=True))
    details = dict(content.cell_details(table, paths, records, path.parent, detailed_cells))
    left_out = sum("left_out" in detail for detail in details.values())
    tables = {"cells": table, "published": published, **shown.tables}
    data = {
        "definitions": {name: definition._asdict() for name, definition in DEFINITIONS.items()},
        "reasons": shown.reasons,
        "tables": {name: content.columns_of(frame) for name, frame in tables.items()},
    }
    text = _template().render(
        title=title,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        summary=_summary(table, records),
        counts={state: int((table["state"] == state).sum()) for state in content.STATES},
        missing=table[~table["state"].isin(["done"])].fillna({"reason": "", "grid": ""}).to_dict("records"),
        matrix=_matrix(table),
        models=sorted(table["model"].unique()),
        findings=[finite(asdict(finding)) for finding in findings],
        published=published.to_dict("records"),
        problems=list(problems),
        unconverged=int((table["converged"] == False).sum()),  # noqa: E712 - missing is neither
        left_out=left_out,
        detailed_cells=detailed_cells,
        definitions=DEFINITIONS,
        data=data,
        details=finite(details),
        **_assets(),
    )
    write_atomically(path, text)
    return WrittenReport(path, len(table), left_out)


def _summary(table: pd.DataFrame, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Say what the grid is of, and with what it was measured."""

    def named(*keys: str) -> list[str]:
        found = set()
        for record in records.values():
            value: Any = record
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            found |= {str(value)} if value else set()
        return sorted(found)

    return {
        "grids": sorted(table["grid"].dropna().unique()),
        "count": {name: int(table[name].nunique()) for name in ("model", "dataset", "language", "rank_budget")},
        "measured": {
            "kvcore": named("versions", "kvcore"),
            "commit": [commit[:12] for commit in named("git_commit")],
            "torch": named("versions", "torch"),
            "transformers": named("versions", "transformers"),
            "capture": named("settings", "capture", "point"),
            "device": named("device"),
        },
    }


def _matrix(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return, for each dataset and language, the cells of each model; those with the same spectrum once."""
    finished = table["spectrum_id"].notna()
    once = table[~(finished & table.duplicated(["model", "dataset", "language", "spectrum_id"]))]
    once = once[once["spectrum_id"].notna() | ~once.duplicated(["model", "dataset", "language"])]
    rows = []
    for (dataset, language), group in once.groupby(["dataset", "language"]):
        by_model = {model: part.to_dict("records") for model, part in group.groupby("model")}
        rows.append({"dataset": dataset, "language": language, "cells": by_model})
    return rows


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kvcore.results.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}  # columns in order
    return environment.get_template("page.html.j2")


def _assets() -> dict[str, Any]:
    """Return styles and scripts, and the policy that lets only these run and lets nothing be fetched."""
    here, tables = resources.files("kvcore.results.report"), resources.files("itables") / "html"
    own = '"use strict";\n' + "\n".join((here / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    scripts = [get_plotlyjs(), own]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    policy = [
        "default-src 'none'",
        f"script-src {allowed} blob:",  # blob: the table library is a module, which is run from one
        "style-src 'unsafe-inline'",  # Plotly positions by style attributes
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return {
        "policy": "; ".join(policy),
        "styles": [(tables / "dt_bundle.css").read_text("utf-8"), (here / "page.css").read_text("utf-8")],
        "scripts": scripts,
        "table_module": json.dumps((tables / "dt_bundle.js").read_text("utf-8")).replace("<", "\\u003c"),
    }
