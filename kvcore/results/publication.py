"""What many cells come to: table, comparison with published values, findings and figures, as files."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from kvcore.cell import replacing, write_atomically, writing_to
from kvcore.results.agreement import comparable
from kvcore.results.collection import Collected, Problem
from kvcore.results.findings import Finding, findings, left_out
from kvcore.results.grid_figures import clear_figures, draw_grid
from kvcore.results.ner_table import as_csv, as_latex, as_markdown, ner_fields
from kvcore.results.published import against_published
from kvcore.results.record import UNTRUSTED, finite

REPORT_FOLDER = "report"


class Publication(NamedTuple):
    """What is made of the cells under an output_root.

    Attributes:
        cells: All readable cells.
        used: Those that can stand in one table.
        fields: Of the table, see `kvcore.results.ner_table.ner_fields`.
        published: See `kvcore.results.published.against_published`.
        findings: See `kvcore.results.findings.findings`.
        left_out: Which spectra no finding rests on; may be empty.
        problems: What is not used.
        untrusted: The cells that are marked in the table and left out of all else.
    """

    cells: pd.DataFrame
    used: pd.DataFrame
    fields: pd.DataFrame
    published: pd.DataFrame
    findings: list[Finding]
    left_out: str
    problems: list[Problem]
    untrusted: list[Problem]


def make_publication(collected: Collected) -> Publication:
    """Make everything but the figures."""
    used, disagreements = comparable(collected.cells)
    untrusted = [
        Problem(path, f"untrusted ({gates} failed): marked in the table, and left out of all else")
        for path, gates in used.loc[used["status"] == UNTRUSTED, ["path", "failed_gates"]].itertuples(index=False)
    ]
    return Publication(
        cells=collected.cells,
        used=used,
        fields=ner_fields(used),
        published=against_published(used),
        findings=findings(used),
        left_out=left_out(used),
        problems=[*collected.problems, *disagreements],
        untrusted=untrusted,
    )


def write_publication(
    publication: Publication, output_root: Path, *, with_figures: bool = True
) -> tuple[list[Path], list[Problem]]:
    """Write it into the folder `report`, each file in one step.

    Args:
        publication: From `make_publication`.
        output_root: What was collected.
        with_figures: Whether to draw, which takes half a second a figure; else those of an earlier call are removed.

    Returns:
        What was written, and the tables of cells that are missing in figures.

    Raises:
        SettingError: The folder cannot be written to.
    """
    folder = output_root / REPORT_FOLDER
    found = {"left_out": publication.left_out, "findings": [asdict(finding) for finding in publication.findings]}
    texts = {
        "cells.csv": publication.cells.to_csv(index=False),
        "published.csv": publication.published.to_csv(index=False),
        "findings.json": json.dumps(finite(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    tables: dict[str, Callable[[pd.DataFrame], str]] = {
        "table.md": as_markdown, "table.tex": as_latex, "table.csv": as_csv,
    }  # fmt: skip
    if len(publication.fields):
        texts |= {name: table(publication.fields) for name, table in tables.items()}
    with writing_to(str(output_root)):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "cells.parquet") as temporary:
            publication.cells.to_parquet(temporary)
        for name in tables.keys() - texts.keys():
            (folder / name).unlink(missing_ok=True)  # of an earlier call, with cells that are not used any more
        for name, text in texts.items():
            write_atomically(folder / name, text)
        figures, problems = list[Path](), list[Problem]()
        if with_figures:
            figures, problems = draw_grid(publication.used, folder / "figures")
        else:
            clear_figures(folder / "figures")
    return [folder / "cells.parquet", *(folder / name for name in texts), *figures], problems
