"""The page: content, styles, scripts and libraries in one file."""

import base64
import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from plotly.offline import get_plotlyjs

from kvcore.cell import write_atomically, writing_to
from kvcore.results.collection import Problem
from kvcore.results.publication import Publication
from kvcore.results.record import finite
from kvcore.results.report import content
from kvcore.results.report.definitions import DEFINITIONS

DETAILED_CELLS = 300
_SCRIPTS = ["data.js", "figures.js", "tables.js", "across.js", "cells.js", "page.js"]


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
    publication: Publication,
    path: Path,
    *,
    states: pd.DataFrame | None = None,
    unreadable: Iterable[Problem] = (),
    title: str = "Key/value cache compressibility",
    detailed_cells: int = DETAILED_CELLS,
) -> WrittenReport:
    """Write one self-contained page that opens from disk without network.

    Args:
        publication: What is shown.
        path: Where to write the page, such as `outputs/report/index.html`.
        states: From `kvcore.grid.states.states`; without it, only finished cells are known.
        unreadable: What `states` could not read.
        title: The page's title.
        detailed_cells: How many finished cells have a page with tables and figures of their own, about 30 KB each, and
            lines in the figures over layers. The numbers of all are in the table of cells.

    Raises:
        SettingError: The page cannot be written.
    """
    states = pd.DataFrame(columns=content.STATE_COLUMNS, dtype=object) if states is None else states
    cells, published = content.told_apart(publication.cells), publication.published
    shown = content.views(publication.used)
    with writing_to(str(path.parent)):
        path.parent.mkdir(parents=True, exist_ok=True)
        table = content.all_cells(cells, states, path.parent)
        details = dict(content.cell_details(cells, table, path.parent, detailed_cells))
        left_out = max(0, len(cells) - detailed_cells)
        tables = {"cells": table, "published": published, **shown.tables}
        text = _template().render(
            title=title,
            written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            summary=_summary(table),
            missing=table[table["state"] != "done"].to_dict("records"),
            matrix=_matrix(table),
            models=sorted(table["model"].unique()),
            findings=publication.findings,
            findings_left_out=publication.left_out,
            published=published.to_dict("records"),
            problems=[*publication.problems, *unreadable],
            left_out=left_out,
            detailed_cells=detailed_cells,
            definitions=DEFINITIONS,
            data={
                "definitions": {name: definition._asdict() for name, definition in DEFINITIONS.items()},
                "reasons": shown.reasons,
                "tables": {name: content.columns_of(frame) for name, frame in tables.items()},
            },
            details=finite(details),
            **_assets(),
        )
        write_atomically(path, text)
    return WrittenReport(path, len(table), left_out)


def _summary(table: pd.DataFrame) -> dict[str, Any]:
    """Say what the grid is of, how far it is, and with what it was measured."""

    def named(column: str) -> list[str]:
        return sorted({str(value) for value in table[column].dropna()} - {""})

    return {
        "grids": named("grid"),
        "extent": {name: table[name].nunique() for name in ("model", "dataset", "language", "rank_budget")},
        "states": {state: int((table["state"] == state).sum()) for state in content.STATES},
        "unconverged": int(table["converged"].isin([False]).sum()),
        "measured": {
            "Commit": sorted({commit[:12] for commit in named("git_commit")}),
            "captured at": named("capture.point"),
            "precision": named("spectrum.precision"),
            "device": named("device"),
        },
    }


def _matrix(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return, for each dataset and language, the cells of each model: one a spectrum, or one that is missing."""
    names = ["id", "state", "model", "dataset", "language", "spectrum_id", "ner_key", "ner_value", "converged"]
    rows: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for cell in table[names].sort_values("spectrum_id", kind="stable").to_dict("records"):  # missing ones last
        field = rows.setdefault((cell["dataset"], cell["language"]), {}).setdefault(cell["model"], [])
        if not field or cell["spectrum_id"] not in (field[-1]["spectrum_id"], None):
            field.append({str(name): value for name, value in cell.items()})
    return [{"dataset": key[0], "language": key[1], "cells": by_model} for key, by_model in sorted(rows.items())]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kvcore.results.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Without sorting, for columns are in order; `default` is for tables with columns of somebody else.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":"), "default": str}
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
