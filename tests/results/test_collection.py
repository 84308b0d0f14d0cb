"""Many records as one table."""

from pathlib import Path

import pandas as pd
import pytest
from results_example import write_cell

from kvcore.results.collection import CELL_COLUMNS, collect, ner_table
from kvcore.schema import SettingError, UserError


def test_the_table_has_the_published_layout(tmp_path: Path) -> None:
    write_cell(tmp_path, "b", "general", "english", ner={"key": 0.25, "value": 0.5}, converged=True)
    write_cell(tmp_path, "a", "general", "english", ner={"key": 0.125, "value": 0.75}, converged=False)
    write_cell(tmp_path, "a", "questions", "german", ner={"key": 0.1, "value": 0.2}, converged=True)
    (tmp_path / "runs" / "b" / "questions-german" / "unfinished").mkdir(parents=True)
    cells = collect(tmp_path)
    assert list(cells.columns) == CELL_COLUMNS
    assert list(cells["model"]) == ["a", "a", "b"]
    expected = pd.DataFrame(
        [["0.1250*", "0.7500*", "0.2500", "0.5000"], ["0.1000", "0.2000", "", ""]],
        index=pd.MultiIndex.from_tuples([("general", "english"), ("questions", "german")]),
        columns=pd.MultiIndex.from_tuples([("a", "K"), ("a", "V"), ("b", "K"), ("b", "V")]),
    )
    pd.testing.assert_frame_equal(ner_table(cells), expected, check_names=False)


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no finished cell under it"):
        collect(tmp_path)
    first = write_cell(tmp_path, "a", "general", "english", id="one")
    second = write_cell(tmp_path, "a", "general", "english", id="two", spectrum_id="other")
    with pytest.raises(UserError, match="belong in one field of the table") as caught:
        ner_table(collect(tmp_path))
    assert {str(first), str(second)} <= set(str(caught.value).splitlines())
    second.write_text('{"schema_version": 0}')
    with pytest.raises(UserError, match="record.json cannot be used .*schema version 0, expected 2"):
        collect(tmp_path)
