"""The published table: every value in its place, marks, gaps, and names that need escaping."""

from pathlib import Path

import pandas as pd
import pytest
from results_example import write_cell

from kvcore.results.collection import collect
from kvcore.results.ner_table import as_csv, as_latex, as_markdown, ner_fields


@pytest.fixture
def fields(tmp_path: Path) -> pd.DataFrame:
    def write(model: str, dataset: str, key: float, value: float, *, converged: bool = True, status: str) -> None:
        write_cell(tmp_path, model, dataset, ner={"key": key, "value": value}, converged=converged, status=status)

    write("a_1", "x", 0.3, 0.7, status="finished")
    write("b", "x", 0.2, 0.8, status="finished")
    write("a_1", "y", 0.1, 0.9, converged=False, status="untrusted")
    write("b", "y", 0.25, 0.6, status="finished")
    write("a_1", "z|&", 0.4, 0.5, status="finished")
    return ner_fields(collect(tmp_path).cells)


def test_the_lowest_are_found_among_what_is_not_marked(fields: pd.DataFrame) -> None:
    named = fields.set_index(["dataset", "model", "kind"])
    assert named.loc[("y", "a_1", "K"), "mark"] == "*†"
    rows = [index for index, lowest in named["lowest_of_row"].items() if lowest]
    assert rows == [("x", "a_1", "V"), ("x", "b", "K")]
    columns = [index for index, lowest in named["lowest_of_column"].items() if lowest]
    assert columns == [("x", "a_1", "K"), ("x", "b", "K"), ("y", "b", "V"), ("z|&", "a_1", "V")]


def test_markdown(fields: pd.DataFrame) -> None:
    assert as_markdown(fields).splitlines() == [
        "| dataset | language | a_1 K | a_1 V | b K | b V |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| x | english | _0.300_ | **0.700** | **_0.200_** | 0.800 |",
        r"| y | english | 0.100\*† | 0.900\*† | 0.250 | _0.600_ |",
        r"| z\|& | english | 0.400 | _0.500_ | - | - |",
        "",
        r"\* not converged: fewer than 20 tokens per dimension  ",
        "† a gate failed: not trusted  ",
        "bold: the lowest of its row  ",
        "italic: the lowest of its column",
    ]


def test_latex(fields: pd.DataFrame) -> None:
    lines = as_latex(fields).splitlines()
    assert lines[1:4] == [
        r"\begin{tabular}{llrrrr}", r"\toprule", r" &  & \multicolumn{2}{c}{a\_1} & \multicolumn{2}{c}{b} \\",
    ]  # fmt: skip
    assert lines[4] == r"\cmidrule(lr){3-4} \cmidrule(lr){5-6}"
    assert r"x & english & \textit{0.300} & \textbf{0.700} & \textbf{\textit{0.200}} & 0.800 \\" in lines
    assert r"y & english & 0.100$^{*\dagger}$ & 0.900$^{*\dagger}$ & 0.250 & \textit{0.600} \\" in lines
    assert r"z|\& & english & 0.400 & \textit{0.500} & -- & -- \\" in lines


def test_csv_holds_all_digits_and_empty_fields(fields: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(as_csv(fields))
    table = pd.read_csv(path)
    names = ["a_1 K", "a_1 V", "a_1 mark", "b K", "b V", "b mark"]
    assert list(table.columns) == ["dataset", "language", *names]
    assert list(table["a_1 K"]) == [0.3, 0.1, 0.4]
    assert table.loc[1, "a_1 mark"] == "*†"
    assert table.loc[2, ["b K", "b V", "b mark"]].isna().all()
