"""Cells stand in one table only where their settings agree."""

from pathlib import Path

import pandas as pd
from results_example import write_cell

from kvcore.results.agreement import comparable, one_a_spectrum
from kvcore.results.collection import CELL_COLUMNS, collect


def test_several_spectra_in_one_field_are_all_left_out_and_told_apart(tmp_path: Path) -> None:
    write_cell(tmp_path, "m", "other", settings={"capture": {"point": "projection"}})
    paths = [
        write_cell(tmp_path, "m", "d", settings={"capture": {"point": point}}, id=point, spectrum_id=point)
        for point in ("projection", "rotary")
    ]
    cells, problems = comparable(collect(tmp_path).cells)
    assert list(cells["dataset"]) == ["other"]
    assert [problem.path for problem in problems] == [str(path) for path in paths]
    assert f"in one field of the table with {paths[1]} (capture.point is projection or rotary)" in problems[0].reason
    assert "give one of them another model.name" in problems[0].reason


def test_cells_that_differ_from_most_are_left_out(tmp_path: Path) -> None:
    for dataset, dtype in (("a", "float32"), ("b", "float32"), ("c", "bfloat16")):
        write_cell(tmp_path, "m", dataset, settings={"model": {"dtype": dtype}})
    write_cell(tmp_path, "n", "a", settings={"model": {"dtype": "bfloat16"}})
    cells, problems = comparable(collect(tmp_path).cells)
    assert list(cells["model"] + cells["dataset"]) == ["ma", "mb", "na"]
    (problem,) = problems
    assert "c-english" in problem.path
    assert problem.reason == "left out: model.dtype = bfloat16, while 2 of those of m have float32"


def test_without_most_none_is_used(tmp_path: Path) -> None:
    for model, limit in (("m", 100), ("n", 200)):
        write_cell(tmp_path, model, "a", settings={"dataset": {"max_tokens": limit}})
        write_cell(tmp_path, model, "b", settings={"dataset": {"max_tokens": 100}})
    cells, problems = comparable(collect(tmp_path).cells)
    assert list(cells["dataset"]) == ["b", "b"]
    assert [problem.reason for problem in problems] == [
        f"left out: dataset.max_tokens = {limit}, while those of a, english should have the same, and not 100 and 200"
        for limit in (100, 200)
    ]


def test_a_trusted_cell_stands_for_its_spectrum(tmp_path: Path) -> None:
    for budget, status in (("grid", "untrusted"), ("uniform", "finished"), ("energy", "untrusted")):
        write_cell(tmp_path, "m", "d", rank_budget=budget, status=status)
    spectra = one_a_spectrum(collect(tmp_path).cells)
    assert list(spectra["rank_budget"]) == ["uniform"]


def test_no_cell_is_no_disagreement() -> None:
    """As where no record under a folder can be read."""
    nothing = pd.DataFrame(columns=CELL_COLUMNS)
    cells, problems = comparable(nothing)
    assert cells.empty
    assert problems == []


def test_nothing_may_be_left(tmp_path: Path) -> None:
    """As where a grid is of several seeds alone."""
    for seed in range(2):
        write_cell(tmp_path, "m", "general", settings={"seed": seed}, id=f"id{seed}", spectrum_id=f"spectrum{seed}")
    used, problems = comparable(collect(tmp_path).cells)
    assert used.empty
    assert len(problems) == 2
