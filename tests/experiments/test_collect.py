"""Collection from the command line: what is printed, what is written, how it ends."""

import json
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from results_example import write_cell
from scripts import call

LANGUAGES = ["english", "arabic", "french", "german"]


def write_grid(root: Path) -> None:
    layers = pd.DataFrame(product(range(3), ("key", "value")), columns=["layer", "kind"]).assign(ner=0.5)
    points = pd.DataFrame(
        {"key_ratio": [1.0, 0.5], "value_ratio": 1.0, "perplexity": [10.0, 20.0], "delta_nll": [0, 0.7]}
    )
    data = [*((f"d{number}", "english") for number in range(4)), *(("d0", name) for name in LANGUAGES[1:])]
    for number, (dataset, language) in enumerate(data):
        perplexity = {"baseline": 10.0, "grid_mean_nd_ppl": 0.1 * number, "grid_mean_nd_ppl_interval": [0, 1]}
        tables = {"layers": layers, "perplexity": points}
        ner = {"key": 0.3 + number / 100, "value": 0.6}
        write_cell(root, "m", dataset, language, tables=tables, perplexity=perplexity, ner=ner, converged=True)


def test_everything_is_printed_and_written(tmp_path: Path) -> None:
    write_grid(tmp_path / "outputs")
    done = call("collect.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Supported here: NER of keys is lower than that of values in 7 of 7 cells" in done.stdout
    report = tmp_path / "outputs" / "report"
    drawn = {f"{name}.{ending}" for ending in ("png", "pdf") for name in (
        "layerwise_ner-m-datasets", "layerwise_ner-m-d0-languages", "perplexity_heatmap-m", "nd_ppl_against_ner",
    )}  # fmt: skip
    written = {"cells.parquet", "cells.csv", "table.md", "table.tex", "table.csv", "published.csv", "findings.json"}
    assert {path.name for path in report.iterdir()} == written | {"figures"}
    assert {path.name for path in (report / "figures").iterdir()} == drawn
    assert len(pd.read_parquet(report / "cells.parquet")) == len(pd.read_csv(report / "cells.csv")) == 7
    assert len(json.loads((report / "findings.json").read_text())["findings"]) == 5
    assert list(pd.read_csv(report / "table.csv")["m K"])[:2] == pytest.approx([0.34, 0.3])
    assert call("collect.py", "figures=false", cwd=tmp_path).returncode == 0
    assert not list((report / "figures").iterdir())  # they might not be of the cells in the tables


def test_what_is_wrong_is_said_and_the_rest_is_written(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_cell(tmp_path, "m", name)
    write_cell(tmp_path, "m", "wrong", status="untrusted")
    bad = write_cell(tmp_path, "m", "bad")
    bad.write_text("{")
    done = call("collect.py", str(tmp_path), "figures=false", cwd=tmp_path)
    assert done.returncode == 0
    assert [line.partition(": ")[2].split(" (")[0] for line in done.stderr.splitlines()] == [
        "is not complete JSON", "untrusted",
    ]  # fmt: skip
    assert "0.5000*†" in done.stdout
    assert (tmp_path / "report" / "table.tex").is_file()
    assert not (tmp_path / "report" / "figures").exists()
    bad_only = call("collect.py", str(tmp_path), "strict=true", "figures=false", cwd=tmp_path)
    assert bad_only.returncode == 1
    bad.unlink()
    assert call("collect.py", str(tmp_path), "strict=true", "figures=false", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["strict=yes"], "strict = 'yes': one of true, false"),
        (["a", "b"], "one folder of outputs is collected, and these are 2: a, b"),
        (["elsewhere"], "output_root = 'elsewhere': no finished cell under it"),
        (["."], "output_root = '.': cannot be written to"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    write_cell(tmp_path, "m", "d")
    (tmp_path / "report").write_text("in the way of the folder")
    done = call("collect.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(said)


def test_nothing_that_can_be_used(tmp_path: Path) -> None:
    record = write_cell(tmp_path, "m", "bad")
    assert call("collect.py", str(tmp_path), "figures=false", cwd=tmp_path).returncode == 0
    assert len(list((tmp_path / "report").glob("table.*"))) == 3
    record.write_text("{")
    done = call("collect.py", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "is not complete JSON" in done.stderr
    assert done.stdout.count("Cannot be told from this grid") == 5
    assert not list((tmp_path / "report").glob("table.*"))  # of the cell that could be read then
