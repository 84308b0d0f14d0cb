"""What a report shows, before a browser shows it."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_example import write_example, write_finished, write_grid
from scipy import stats

from kvcore.results.collection import collect, no_cells
from kvcore.results.publication import make_publication
from kvcore.results.report import write_report
from kvcore.results.report.content import STATES, all_cells, columns_of, views
from kvcore.results.report.costs import cost_points, fitted_lines
from kvcore.schema import SettingError


def test_cells_without_a_record_are_among_them_with_the_reason(tmp_path: Path) -> None:
    states = write_grid(tmp_path)
    table = all_cells(collect(tmp_path).cells, states, tmp_path / "report")
    assert table["state"].value_counts().to_dict() == {
        "done": 4, "untrusted": 1, "failed": 1, "running": 1, "pending": 1,
    }  # fmt: skip
    assert set(table["state"]) <= set(STATES)
    assert table["id"].is_unique
    by_data = table.set_index("dataset")
    assert by_data.loc["delta", "reason"] == "no <b>room</b>"
    assert by_data.loc["beta", "reason"] == "failed gates: tail_energy"
    assert by_data.loc["alpha", "folder"] == "../runs/small/alpha-english/a1"
    assert by_data.loc["alpha", "grid"] == "try"


def test_a_finished_cell_whose_record_cannot_be_used_does_not_vanish(tmp_path: Path) -> None:
    states = write_grid(tmp_path)
    next(tmp_path.glob("runs/small/alpha-english/*/record.json")).write_text("{", encoding="utf-8")
    table = all_cells(collect(tmp_path).cells, states, tmp_path / "report").set_index("dataset")
    assert table.loc["alpha", "state"] == "unreadable"


def test_tables_go_into_the_page_exactly() -> None:
    numbers = pd.DataFrame({"x": [0.1 + 0.2, np.nan, np.inf], "n": [1, 2, 3], "name": ["a", None, "</script>"]})
    columns = json.loads(json.dumps(columns_of(numbers), allow_nan=False))
    assert columns == {"x": [0.30000000000000004, None, "Infinity"], "n": [1, 2, 3], "name": ["a", None, "</script>"]}


def test_lines_are_least_squares_with_the_band_of_the_mean(tmp_path: Path) -> None:
    ner = [0.2, 0.3, 0.4, 0.6]
    costs = [0.5, 0.9, 0.8, 1.6]
    for index, (x, y) in enumerate(zip(ner, costs, strict=True)):
        perplexity = {"baseline": 7.5, "grid_mean_nd_ppl": y}
        write_finished(tmp_path, "m", f"d{index}", "english", f"{index}", x, perplexity=perplexity)
    fits = fitted_lines(cost_points(collect(tmp_path).cells))
    keys = fits[fits["kind"] == "key"]
    slope, intercept = np.polyfit(ner, costs, 1)
    assert keys["fit"].to_numpy() == pytest.approx(intercept + slope * keys["ner"].to_numpy())
    assert keys["pearson"].iloc[0] == pytest.approx(np.corrcoef(ner, costs)[0, 1])
    residuals = np.array(costs) - intercept - slope * np.array(ner)
    squares = np.sum((np.array(ner) - np.mean(ner)) ** 2)
    variance = np.sum(residuals**2) / 2 * (1 / 4 + (0.2 - np.mean(ner)) ** 2 / squares)
    half = stats.t.ppf(0.975, 2) * np.sqrt(variance)
    first = keys.iloc[0]
    assert [first["ner"], first["low"], first["high"]] == pytest.approx([0.2, first["fit"] - half, first["fit"] + half])


def test_an_untrusted_cell_has_no_place_in_costs_and_absent_views_say_why(tmp_path: Path) -> None:
    write_grid(tmp_path)
    shown = views(collect(tmp_path).cells)
    assert "b2" not in set(shown.tables["cost"]["id"])
    assert shown.reasons["transfer"].startswith("no finished cell was evaluated on another dataset")
    assert "transfer" not in shown.tables


def test_the_page_is_one_file_that_names_no_other(tmp_path: Path) -> None:
    written = write_example(tmp_path)
    assert (written.cells, written.left_out) == (8, 0)
    text = written.path.read_text(encoding="utf-8")
    own = re.sub(r"<script>.*?</script>|<style>.*?</style>|<script type=.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", own)
    assert "default-src &#39;none&#39;" in own
    assert [path.name for path in written.path.parent.iterdir()] == ["index.html"]
    assert written.path.stat().st_size < 8e6


def test_above_a_limit_cells_have_no_tables_of_their_own(tmp_path: Path) -> None:
    written = write_example(tmp_path, detailed_cells=2)
    assert written.left_out == 3
    text = written.path.read_text(encoding="utf-8")
    assert "3 finished cells have no tables and figures of their own on this page" in text
    assert len(re.findall('id="cell-', text)) == 2 + 1  # and one that failed


def test_a_page_of_nothing_and_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    nothing = make_publication(no_cells())
    written = write_report(nothing, tmp_path / "report" / "index.html")
    assert written.cells == 0
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="cannot be written to"):
        write_report(nothing, tmp_path / "file" / "index.html")


def test_costs_are_of_a_spectrum_once_and_of_its_own_data(tmp_path: Path) -> None:
    """A second judge, or other data to evaluate on, adds no point to the line through costs and NER."""
    judged = {"grid_mean_score": 2.625, "grid_mean_score_interval": [2.0, 3.0]}
    for index, ner in enumerate([0.2, 0.3, 0.4]):
        one = {"spectrum_id": f"spectrum-{index}"}
        write_finished(tmp_path, "small", f"d{index}", "english", f"a{index}", ner, **one)
        write_finished(tmp_path, "small", f"d{index}", "english", f"b{index}", ner, judged=judged, **one)
        write_finished(tmp_path, "small", f"d{index}", "english", f"c{index}", ner, evaluated_on="other", **one)
    points = cost_points(collect(tmp_path).cells)
    assert list(points["id"]) == ["b0", "b1", "b2"] * 2
    assert set(fitted_lines(points)["cells"]) == {3}


def test_figures_show_the_cells_that_compare(tmp_path: Path) -> None:
    for index in range(3):
        write_finished(tmp_path, "small", f"d{index}", "english", f"a{index}", 0.2)
    publication = make_publication(collect(tmp_path))
    none_used = publication._replace(used=publication.cells.iloc[:0])
    page = write_report(none_used, tmp_path / "report" / "index.html").path.read_text("utf-8")
    assert "no trusted cell has a rank budget that is a grid" in page


def test_one_id_with_two_names_is_two_cells(tmp_path: Path) -> None:
    for model in ("one", "two"):
        layers = pd.DataFrame({"layer": [0], "foreign": [b"x"]})
        write_finished(tmp_path, model, "d", "english", "same", 0.2, spectrum_id="s", tables={"layers": layers})
    page = write_report(make_publication(collect(tmp_path)), tmp_path / "index.html").path.read_text("utf-8")
    details = dict(re.findall('id="cell-([^"]*)">(.*?)</script>', page))
    named = {key: json.loads(detail)["record"]["settings"]["model"]["name"] for key, detail in details.items()}
    assert named == {"same": "one", "same-2": "two"}
    assert 'href="#cell?id=same-2"' in page


def test_a_table_without_its_columns_is_a_reason(tmp_path: Path) -> None:
    path = write_finished(tmp_path, "small", "alpha", "english", "a1", 0.3)
    pd.DataFrame({"foreign": [1]}).to_parquet(path.with_name("perplexity.parquet"))
    assert "it has no column strategy, budget" in views(collect(tmp_path).cells).reasons["budgets"]
