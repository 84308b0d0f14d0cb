"""Time and memory of collecting a large grid: python benchmarks/collection.py [--cells 5000] [--no-figures].

Writes synthetic cells into a temporary folder: models x 21 datasets and languages x 30 rank budgets, with the tables
that figures are drawn from, and runs experiments/collect.py on it in a process of its own, everything it writes
included. The seconds of the processor tell more than those of the clock where others use the machine.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from kvcore.cell import identity
from kvcore.composition import composed_settings

CONFIGURATION = Path(__file__).resolve().parents[1] / "conf"
LAYERS = 32
RATIOS = [1.0, 0.8, 0.6, 0.4, 0.2]
BUDGETS = ["grid", *(f"budget{number}" for number in range(29))]
DATA = [(f"domain{number}", "english") for number in range(5)] + [
    ("multilingual", "english" if number == 0 else f"language{number}") for number in range(16)
]


def cells(count: int) -> Iterator[tuple[str, str, str, str]]:
    """Yield model, dataset, language and rank budget, so many of them, model by model."""
    per_model = len(DATA) * len(BUDGETS)
    grid = product(range(math.ceil(count / per_model)), DATA, BUDGETS)
    for _, (model, (dataset, language), budget) in zip(range(count), grid, strict=False):
        yield f"model{model}", dataset, language, budget


def record(model: str, dataset: str, language: str, budget: str, draws: np.random.Generator) -> dict[str, Any]:
    """Return a record of the real layout and size."""
    spectrum = identity({"model": model, "dataset": dataset, "language": language})
    key = 0.2 + 0.4 * int(spectrum[:4], 16) / 65536
    ratios = {"key_ratios": RATIOS, "value_ratios": RATIOS} if budget == "grid" else {}
    data = {"dataset": dataset, "language": language, "examples": 20, "tokens": 1000}
    cost = float(draws.uniform(0.3, 0.9))
    gates = ("token_count", "full_rank", "tail_energy", "perplexity_moves")
    return {
        "schema_version": 2, "status": "finished", "spectrum_id": spectrum,
        "id": identity({"spectrum": spectrum, "budget": budget}),
        "settings": {
            "model": {"name": model, "revision": "f" * 64, "dtype": "float32", "expected": {"layers": LAYERS}},
            "dataset": {"name": dataset, "revision": "0" * 64, "max_tokens": 5300, "prompt": "{instruction}"},
            "language": {"name": language}, "rank_budget": {"name": budget} | ratios,
            "capture": {"point": "projection", "skip_first_tokens": 0}, "seed": 0,
            "evaluation": {"share": 0.2, "target": "all", "max_examples": None, "max_tokens": None},
        },
        "tokens": 30_000, "tokens_per_dim": 30_000 / 1024, "converged": True, "ner": {"key": key, "value": key + 0.3},
        "splits": {"calibration": data, "evaluation": data | {"in_sample": False, "shared_examples": 0}},
        "perplexity": {
            "baseline": 20.0, "baseline_interval": [18.0, 22.0],
            "grid_mean_nd_ppl": cost if ratios else None,
            "grid_mean_nd_ppl_interval": [cost - 0.1, cost + 0.1] if ratios else None,
        },
        "judged": None, "gates": {name: {"passed": True, "value": 0.0, "limit": 1e-3} for name in gates},
        "versions": {"kvcore": "0.1.0", "torch": "2.13.0"}, "git_commit": "0" * 40, "device": "cpu",
        "seconds": {"capture": 20.0, "perplexity": 40.0}, "peak_memory_bytes": 10**9,
    }  # fmt: skip


def write_grid(root: Path, count: int) -> None:
    """Write the cells; those of one kind of budget share their tables."""
    draws = np.random.default_rng(0)
    layers = pd.DataFrame(product(range(LAYERS), ("key", "value")), columns=["layer", "kind"])
    layers["ner"] = draws.uniform(0.2, 0.8, len(layers))
    points = pd.DataFrame(product(RATIOS, RATIOS), columns=["key_ratio", "value_ratio"])
    points["delta_nll"] = 2 - points.sum(axis=1)
    points["perplexity"] = 20 * np.exp(points["delta_nll"])
    settings = yaml.safe_dump(composed_settings([], CONFIGURATION).model_dump(mode="json"), sort_keys=False)
    for table, name in ((layers, "layers"), (points, "perplexity")):
        table.to_parquet(root / f"{name}.parquet")
    for cell in cells(count):
        found = record(*cell, draws)
        folder = root / "runs" / cell[0] / f"{cell[1]}-{cell[2]}" / found["id"]
        folder.mkdir(parents=True)
        for name in ("layers", "perplexity"):
            (folder / f"{name}.parquet").write_bytes((root / f"{name}.parquet").read_bytes())
        (folder / "settings.yaml").write_text(settings)
        (folder / "record.json").write_text(json.dumps(found, indent=2))


def main() -> None:
    """Print seconds and the peak of memory."""
    parser = argparse.ArgumentParser(description="Time and memory of collecting a large grid.")
    parser.add_argument("--cells", default=5000, type=int)
    parser.add_argument("--no-figures", action="store_true", help="tables and findings alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_grid(Path(folder), arguments.cells)
        switch = f"figures={str(not arguments.no_figures).lower()}"
        script = Path(__file__).parents[1] / "experiments" / "collect.py"
        start = time.perf_counter()
        done = subprocess.run([sys.executable, script, folder, switch], check=True, capture_output=True, text=True)  # noqa: S603
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = used.ru_utime + used.ru_stime
    figures = sum(line.endswith(".pdf") for line in done.stdout.splitlines())
    times = f"{seconds:.1f} s ({processor:.1f} s of the processor)"
    print(f"{arguments.cells} cells, {figures} figures: {times}, {used.ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
