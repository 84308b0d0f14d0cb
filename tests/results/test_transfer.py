"""Transfer matrices: every pair in its place, the diagonal marked, gaps as gaps."""

import math
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from results_example import cost_tables, write_cell

from kvcore.results import figures
from kvcore.results.collection import collect
from kvcore.results.transfer import draw_transfers, transfers
from kvcore.schema import UserError


def write(root: Path, basis: str, evaluated_on: str, delta: float, **changes: str) -> None:
    tables = cost_tables("waterfill", {1.0: [2.0], 0.5: [2.0 + 2 * delta]}, [2])
    write_cell(root, "m", basis, evaluated_on=evaluated_on, rank_budget="waterfill", tables=tables, **changes)


def test_rows_are_bases_and_columns_what_was_evaluated(tmp_path: Path) -> None:
    for basis, evaluated_on, delta in (("b", "b", 0.1), ("b", "a", 0.2), ("a", "b", 0.4)):
        write(tmp_path, basis, evaluated_on, delta)
    (transfer,) = transfers(collect(tmp_path).cells)
    assert (transfer.model, transfer.asked) == ("m", "waterfill 0.5")
    matrix = transfer.delta_nll
    assert list(matrix.index) == list(matrix.columns) == ["a", "b"]
    assert math.isnan(matrix.loc["a", "a"])
    assert [matrix.loc[pair] for pair in (("a", "b"), ("b", "a"), ("b", "b"))] == pytest.approx([0.4, 0.2, 0.1])
    paths = draw_transfers([transfer], tmp_path / "drawn")
    assert [path.name for path in paths] == [f"m-waterfill_0.5.{ending}" for ending in ("csv", "png", "pdf")]
    assert pd.read_csv(paths[0], index_col=0).loc["b", "a"] == pytest.approx(0.2)


def test_names_say_what_tells_rows_and_columns_apart(tmp_path: Path) -> None:
    write(tmp_path, "a", "a", 0.1, language="german", evaluated_language="english")
    (languages,) = transfers(collect(tmp_path).cells)
    assert list(languages.delta_nll) == ["english", "german"]
    write(tmp_path, "a", "b", 0.1, language="german", evaluated_language="english")
    (both,) = transfers(collect(tmp_path).cells)
    assert list(both.delta_nll) == ["a, english", "a, german", "b, english"]


@pytest.mark.parametrize(("count", "length"), [(2, 60), (5, 30), (16, 10)])
def test_numbers_stay_inside_their_fields(count: int, length: int) -> None:
    names = [f"{number:0{length}}" for number in range(count)]
    figure = figures.transfer_heatmap(pd.DataFrame(10.0, index=names, columns=names), "m")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    fields = axes.get_window_extent()
    for text in axes.texts:
        assert text.get_window_extent().width < fields.width / count
        assert text.get_window_extent().height < fields.height / count


def test_the_diagonal_is_framed() -> None:
    matrix = pd.DataFrame([[0.1, 0.2], [0.3, 0.4]], index=["a", "b"], columns=["a", "b"])
    axes = figures.transfer_heatmap(matrix, "m").axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.100", "0.200", "0.300", "0.400"]
    framed = [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    assert framed == [(0, 0), (1, 1)]


def test_bases_and_tokens_that_differ_are_refused(tmp_path: Path) -> None:
    for name, second in (("basis", {"spectrum_id": "other"}), ("tokens", {})):
        root = tmp_path / name
        write(root, "a", "b", 0.1)
        tables = cost_tables("waterfill", {1.0: [2.0, 1.0], 0.5: [3.0, 1.0]}, [2, 1] if name == "tokens" else [1, 1])
        basis, on = ("c", "b") if name == "tokens" else ("a", "c")
        write_cell(root, "m", basis, evaluated_on=on, rank_budget="waterfill", tables=tables, **second)
        said = (
            "cost was measured on several numbers of tokens" if name == "tokens" else "bases were computed in several"
        )
        with pytest.raises(UserError, match=said):
            list(transfers(collect(root).cells))


def test_what_is_no_matrix_is_said(tmp_path: Path) -> None:
    write(tmp_path / "own", "a", "a", 0.1)
    with pytest.raises(UserError, match="no finished cell was evaluated on another dataset"):
        list(transfers(collect(tmp_path / "own").cells))
    nothing = cost_tables("none", {1.0: [2.0]}, [2])
    write_cell(tmp_path / "none", "m", "a", evaluated_on="b", rank_budget="none", tables=nothing)
    with pytest.raises(UserError, match="no cell of this transfer matrix truncates anything"):
        list(transfers(collect(tmp_path / "none").cells))
    tables = cost_tables("waterfill", {1.0: [2.0], 0.5: [3.0]}, [2])
    for number in range(2):
        write_cell(tmp_path, "m", "a", evaluated_on="b", rank_budget="waterfill", tables=tables, id=f"{number}")
    with pytest.raises(UserError, match="these cells belong in one field of a transfer matrix"):
        list(transfers(collect(tmp_path).cells))
