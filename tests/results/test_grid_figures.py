"""Figures of many cells: every line told apart, untrusted cells left out, old figures removed."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from results_example import write_cell

from kvcore.results.agreement import comparable
from kvcore.results.collection import collect
from kvcore.results.grid_figures import draw_grid, layerwise_ner


def layers(labels: int) -> pd.DataFrame:
    table = pd.DataFrame(product(range(labels), range(4), ("key", "value")), columns=["number", "layer", "kind"])
    ner = np.linspace(0.1, 0.9, len(table))
    return table.assign(ner=ner, label=table["number"].map("l{:02d}".format))


def test_lines_are_told_apart_and_named_from_the_highest() -> None:
    figure = layerwise_ner(layers(20), "title")
    keys, values = figure.axes
    assert (keys.get_ylabel(), values.get_xlabel()) == ("NER of keys (rank / kv_dim)", "layer")
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in keys.get_lines()}
    assert len(looks) == len(keys.get_lines()) == len(values.get_lines()) == 20
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"l{number:02d}" for number in range(19, -1, -1)]
    assert keys.get_lines()[0].get_ydata()[0] == pytest.approx(layers(20).query("label == 'l19'")["ner"].iloc[0])


def test_too_many_lines_become_median_and_range() -> None:
    figure = layerwise_ner(layers(21), "title")
    keys, values = figure.axes
    assert len(keys.get_lines()) == len(keys.collections) == 1
    part = layers(21).query("kind == 'key'").groupby("layer")["ner"]
    assert list(keys.get_lines()[0].get_ydata()) == pytest.approx(list(part.median()))
    assert values.get_xlabel() == "layer (line: median of 21; band: their range)"


def test_only_trusted_cells_are_drawn_and_their_means(tmp_path: Path) -> None:
    points = pd.DataFrame({"key_ratio": [1.0, 0.5], "value_ratio": [1.0, 1.0], "delta_nll": [0.0, 0.5]})
    scores = pd.DataFrame({"key_ratio": [1.0, 0.5], "value_ratio": [1.0, 1.0], "score": [8.0, 4.0], "judged": [3, 2]})
    for number, status in enumerate(("finished", "finished", "untrusted")):
        tables = {
            "layers": layers(1).drop(columns="label"),
            "perplexity": points.assign(perplexity=[10.0 * 4**number, 20.0 * 4**number]),
            "scores": scores.assign(score=scores["score"] - number),
        }
        judged = {"grid_mean_score": 5.0}
        write_cell(tmp_path, "m", f"d{number}", tables=tables, status=status, judged=judged)
    write_cell(tmp_path, "m", "d3")
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "old.png").touch()
    used, _ = comparable(collect(tmp_path).cells)
    written, problems = draw_grid(used, folder)
    names = {"layerwise_ner-m-datasets", "perplexity_heatmap-m", "score_heatmap-m"}
    assert {path.stem for path in written} == {path.stem for path in folder.iterdir()} == names
    assert [problem.path.split("/")[-3] for problem in problems] == ["d3-english"] * 2
    assert "layers.parquet cannot be read" in problems[0].reason


def test_means_over_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvcore.results import figures

    drawn = {}
    monkeypatch.setattr(figures, "save_figure", lambda figure, _, name: drawn.setdefault(name, figure) and [])
    for number in range(2):
        points = {
            "key_ratio": [1.0, 0.5],
            "value_ratio": 1.0,
            "perplexity": [10.0 * 4**number] * 2,
            "delta_nll": [0, 1],
        }
        scores = {"key_ratio": [1.0, 0.5], "value_ratio": 1.0, "score": [8.0 - number, 4.0], "judged": [3, 2]}
        tables = {"perplexity": pd.DataFrame(points), "scores": pd.DataFrame(scores)}
        write_cell(tmp_path, "m", f"d{number}", tables=tables, judged={"grid_mean_score": 5.0})
    draw_grid(collect(tmp_path).cells, tmp_path)
    texts = {name: [text.get_text() for text in figure.axes[0].texts] for name, figure in drawn.items()}
    assert texts == {"perplexity_heatmap-m": ["20.0", "20.0"], "score_heatmap-m": ["7.50\nn=6", "4.00\nn=4"]}


def test_costs_of_different_grids_are_not_drawn_together(tmp_path: Path) -> None:
    for number in range(6):
        ratios = {"key_ratios": [1.0, 0.5], "value_ratios": [1.0, 0.5 if number < 3 else 0.1]}
        costs = {"baseline": 9.0, "grid_mean_nd_ppl": number, "grid_mean_nd_ppl_interval": [0, 9]}
        ner = {"key": number / 10, "value": 0.7 + number / 100}
        model = "m" if number < 3 else "n"
        write_cell(tmp_path, model, f"d{number}", settings={"rank_budget": ratios}, perplexity=costs, ner=ner)
    cells = collect(tmp_path).cells
    _, problems = draw_grid(cells, tmp_path / "both")
    assert not list((tmp_path / "both").glob("*against_ner*"))
    assert problems[-1].reason.startswith(
        "nd_ppl was measured in several ways, it is not drawn against NER: [1.0, 0.5] x"
    )
    draw_grid(cells[cells["model"] == "m"], tmp_path / "one")
    assert (tmp_path / "one" / "nd_ppl_against_ner.png").is_file()


def test_a_dollar_in_a_name_begins_no_formula(tmp_path: Path) -> None:
    for number in range(2):
        path = write_cell(tmp_path, "m", f"d{number}", tables={"layers": layers(1).drop(columns="label")})
        path.write_text(
            path.read_text().replace('"name": "m"', r'"name": "$\\m$"').replace(f'"d{number}"', f'"$_${number}"')
        )
    written, _ = draw_grid(collect(tmp_path).cells, tmp_path / "figures")
    assert len(written) == 2


def test_a_table_without_rows_is_missing_in_the_figure_and_its_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvcore.results import figures

    titles = {}
    monkeypatch.setattr(
        figures, "save_figure", lambda figure, _, name: titles.setdefault(name, figure.get_suptitle()) and []
    )
    points = pd.DataFrame({"key_ratio": [1.0, 0.5], "value_ratio": 1.0, "perplexity": 9.0, "delta_nll": [0, 1]})
    for number in range(3):
        kept = 2 if number else 0
        tables = {"layers": layers(1).drop(columns="label").head(4 * kept), "perplexity": points.head(kept)}
        write_cell(tmp_path, "m", f"d{number}", tables=tables)
    _, problems = draw_grid(collect(tmp_path).cells, tmp_path)
    assert titles["perplexity_heatmap-m"] == "perplexity of m\ngeometric mean over 2 datasets and languages"
    assert ["it has no rows" in problem.reason for problem in problems] == [True, True]


def test_odd_names_stay_in_the_folder_of_figures(tmp_path: Path) -> None:
    for number in range(2):
        path = write_cell(tmp_path, "m", f"d{number}", tables={"layers": layers(1).drop(columns="label")})
        path.write_text(path.read_text().replace('"name": "m"', '"name": "../../../m|x"'))
    pd.DataFrame({"foreign": [1]}).to_parquet(path.with_name("perplexity.parquet"))
    written, problems = draw_grid(collect(tmp_path).cells, tmp_path / "a" / "figures")
    assert {path.name for path in written if path.suffix == ".png"} == {"layerwise_ner-.._.._.._m_x-datasets.png"}
    assert {path.parent for path in written} == {tmp_path / "a" / "figures"}
    assert "has no column key_ratio" in problems[-1].reason or "cannot be read" in problems[-1].reason
