"""A small grid with every state that a cell can be in, written as cells would, and its report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from results_example import cost_tables, write_cell

from kvcore.evaluation.gates import Gate
from kvcore.results.collection import Problem, collect
from kvcore.results.findings import Finding
from kvcore.results.publication import make_publication
from kvcore.results.report import WrittenReport, write_report

HOSTILE_DATASET = "<img src=x onerror=alert(1)>"
HOSTILE_MODEL = "</script><script>alert(2)</script>"
FINDINGS = [
    Finding("Keys are smaller.", "Supported here: by 0.25.", True, {"difference": 0.25}),
    Finding("Judges agree.", "Cannot be told from this grid.", None),
]


def layer_table(first: float) -> pd.DataFrame:
    """Return four spectra; the first is not converged."""
    rows = [
        {
            "layer": layer,
            "kind": kind,
            "kv_dim": 8,
            "tokens": 1600,
            "ner": first + 0.1 * layer + shift,
            "converged": True,
        }
        for layer in range(2)
        for kind, shift in (("key", 0.0), ("value", 1 / 3))
    ]
    return pd.DataFrame(rows).assign(converged=[False, True, True, True], stable_rank=[np.nan, 1.5, 2.5, 0.1 + 0.2])


def write_finished(root: Path, model: str, dataset: str, language: str, key: str, ner: float, **changes: Any) -> Path:
    """Write a cell with a grid, layers and convergence; `named` replaces names that a folder cannot have."""
    named = changes.pop("named", {})
    tables = cost_tables("grid", {(1.0, 1.0): [2.0, 2.0], (0.5, 1.0): [3.0, 2.5], (0.5, 0.5): [4.0, 3.0]}, [1, 1])
    layers = layer_table(ner)
    tables |= {"layers": layers, "convergence": layers[["layer", "kind", "tokens", "ner"]], **changes.pop("tables", {})}
    results = {
        "id": key, "spectrum_id": f"spectrum-{key}", "ner": {"key": ner, "value": ner + 1 / 3}, "converged": True,
        "tokens": 1600, "tokens_per_dim": 200.0,
        "perplexity": {"baseline": 7.5, "grid_mean_nd_ppl": ner * 2, "grid_mean_nd_ppl_interval": [ner, ner * 3]},
    }  # fmt: skip
    path = write_cell(root, model, dataset, language, tables=tables, **results | changes)
    record = json.loads(path.read_text(encoding="utf-8"))
    for group, name in named.items():
        record["settings"][group]["name"] = name
        if group == "dataset":
            record["splits"]["evaluation"]["dataset"] = name
    record["settings"]["rank_budget"] |= {"key_ratios": [1.0, 0.5], "value_ratios": [1.0, 0.5]}
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def score_table() -> pd.DataFrame:
    rows = [(1.0, 1.0, 8.5), (0.5, 1.0, 4.25), (0.5, 0.5, 1.0)]
    points = [{"key_ratio": key, "value_ratio": value, "score": score, "judged": 4} for key, value, score in rows]
    return pd.DataFrame(points)


def write_grid(root: Path) -> pd.DataFrame:
    """Write the cells and return the states of all, three of which did not finish."""
    untrusted = {"status": "untrusted", "gates": {"tail_energy": Gate(passed=False, value=0.5, limit=0.001)}}
    judged = {"grid_mean_score": 2.625, "grid_mean_score_interval": [2.0, 3.0]}
    write_finished(root, "small", "alpha", "english", "a1", 0.30)
    write_finished(root, "small", "beta", "english", "b2", 0.20, **untrusted)
    write_finished(root, "small", "gamma", "german", "c3", 0.40, converged=False, tokens_per_dim=12.5)
    write_finished(root, "small", "gamma", "english", "d4", 0.35, judged=judged, tables={"scores": score_table()})
    write_finished(root, "x", "y", "english", "e5", 0.25, named={"model": HOSTILE_MODEL, "dataset": HOSTILE_DATASET})
    names = {"grid": "try", "model": "small", "language": "english", "rank_budget": "grid"}
    failed, running = (root / "runs" / "small" / f"{name}-english" / name for name in ("delta", "epsilon"))
    failed.mkdir(parents=True)
    failure = {
        "stage": "capture",
        "error": "no <b>room</b>",
        "traceback": "Traceback: no room",
        "settings": {"seed": 3},
    }
    (failed / "failure.json").write_text(json.dumps(failure), encoding="utf-8")
    missing = [
        {"dataset": "delta", "state": "failed", "reason": "no <b>room</b>", "folder": str(failed)},
        {"dataset": "epsilon", "state": "running", "reason": "", "folder": str(running)},
        {"dataset": "zeta", "state": "pending", "reason": "", "folder": ""},
    ]
    done = [
        {"dataset": path.parts[-3].partition("-")[0], "state": "done", "reason": "", "folder": str(path.parent)}
        for path in root.glob("runs/*/*/*/record.json")
    ]
    return pd.DataFrame([names | state for state in [*missing, *done]])


def write_example(root: Path, **changes: Any) -> WrittenReport:
    """Write the grid's report."""
    states = write_grid(root)
    published = pd.DataFrame(
        {"dataset": ["alpha"] * 2, "language": ["english"] * 2, "model": ["small"] * 2, "kind": ["key", "value"],
         "measured": [0.3, 0.3 + 1 / 3], "published": [0.31, 0.6], "difference": [-0.01, 0.3 + 1 / 3 - 0.6],
         "converged": [True, True]}
    )  # fmt: skip
    publication = make_publication(collect(root))._replace(findings=FINDINGS, published=published)
    unreadable = [Problem("runs/odd/record.json", "is not complete JSON")]
    return write_report(publication, root / "report" / "index.html", states=states, unreadable=unreadable, **changes)
