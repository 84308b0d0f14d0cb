"""Many records as one table: what is wrong is named and not used."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from results_example import write_cell

from kvcore.results.collection import CELL_COLUMNS, collect
from kvcore.schema import SettingError


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_each_record_is_a_row(tmp_path: Path) -> None:
    perplexity = {"baseline": 12.5, "baseline_interval": [10, 15], "grid_mean_nd_ppl": math.inf}
    judged = {"grid_mean_score": 6.5, "grid_mean_score_interval": [5, 8]}
    write_cell(tmp_path, "b", "general", "english", perplexity=perplexity, judged=judged, tokens=200)
    settings = {"capture": {"point": "rotary"}, "rank_budget": {"key_ratios": [1.0, 0.5], "value_ratios": [1.0]}}
    settings |= {"evaluation": {"target": "response", "max_tokens": 500}}
    write_cell(tmp_path, "a", "questions", "german", settings=settings, ner={"key": 0.1, "value": 0.2})
    (tmp_path / "runs" / "b" / "general-english" / "unfinished").mkdir(parents=True)
    cells, problems = collect(tmp_path)
    assert not problems
    assert list(cells.columns) == CELL_COLUMNS
    german, english = (row for _, row in cells.iterrows())
    assert [german[name] for name in ("model", "language", "ner_key", "ner_value")] == ["a", "german", 0.1, 0.2]
    assert [german["capture.point"], german["kv_dim"]] == ["rotary", 16]
    assert german["surface"] == "[1.0, 0.5] x [1.0], target=response, max_tokens=500"
    assert pd.isna(english["surface"])
    assert [english[f"perplexity{end}"] for end in ("", "_low", "_high")] == [12.5, 10, 15]
    assert [english[f"grid_mean_score{end}"] for end in ("", "_low", "_high")] == [6.5, 5, 8]
    assert math.isinf(english["grid_mean_nd_ppl"])
    assert [german["judged"], english["judged"], english["seconds"]] == [False, True, 1.5]


def test_records_that_cannot_be_read_are_named_and_skipped(tmp_path: Path) -> None:
    good = write_cell(tmp_path, "a", "good")
    paths = {
        name: write_cell(tmp_path, "a", name) for name in ("half", "foreign", "list", "old", "nan", "bytes", "deep")
    }
    paths["half"].write_text(paths["half"].read_text()[:200])
    paths["foreign"].write_text('{"name": "somebody else"}')
    paths["list"].write_text("[1, 2]")
    change(paths["old"], schema_version=1)
    change(paths["nan"], ner={"key": 1.5, "value": 0.5})
    paths["bytes"].write_bytes(b"\xff\xfe\x00")
    paths["deep"].write_text("[" * 100_000)
    cells, problems = collect(tmp_path)
    assert list(cells["path"]) == [str(good)]
    reasons = {problem.path: problem.reason for problem in problems}
    assert set(reasons) == {str(path) for path in paths.values()}
    assert reasons[str(paths["half"])].startswith("is not complete JSON")
    assert reasons[str(paths["foreign"])] == "is not a record of kvcore: it has no 'schema_version'"
    assert "is not a record of kvcore" in reasons[str(paths["list"])]
    assert reasons[str(paths["old"])] == "has schema version 1; only 2 can be read: run that cell anew"
    assert reasons[str(paths["nan"])] == "has an NER of 1.5, which is not between 0 and 1"
    assert all("\n" not in str(problem) for problem in problems)


@pytest.mark.parametrize(
    ("change_of", "reason"),
    [
        ({"tokens": 10**30}, "has a number of tokens or bytes of 1000"),
        ({"tokens": -5}, "has a number of tokens or bytes of -5"),
        ({"tokens_per_dim": 1e-300}, "has a number of tokens or bytes of 9999"),
        ({"tokens_per_dim": math.nan}, "cannot convert float NaN to integer"),
        ({"peak_memory_bytes": 1e30}, "has a number of tokens or bytes of 1e+30"),
        ({"tokens_per_dim": 1e-320}, "cannot convert float infinity to integer"),
        ({"perplexity": {"baseline": 10**400, "grid_mean_nd_ppl": 1}}, "int too large to convert to float"),
        ({"device": "cpu \ud800"}, r"has device = 'cpu \ud800', which is not text"),
        ({"settings": {}}, "is not a record of kvcore: it has no 'rank_budget'"),
    ],
)
def test_a_record_with_impossible_values_does_not_stop_the_others(
    tmp_path: Path, change_of: dict[str, Any], reason: str
) -> None:
    good, bad = write_cell(tmp_path, "a", "good"), write_cell(tmp_path, "a", "bad")
    change(bad, **change_of)
    cells, problems = collect(tmp_path)
    assert list(cells["path"]) == [str(good)]
    assert [problem.path for problem in problems] == [str(bad)]
    assert problems[0].reason.startswith(reason)


def test_records_of_one_id_that_differ_are_both_named_and_neither_is_used(tmp_path: Path) -> None:
    write_cell(tmp_path, "a", "general")
    first = write_cell(tmp_path, "a", "medical")
    second, copy = (tmp_path / "runs" / "a" / name / "again" / "record.json" for name in ("medical-english", "copy"))
    for path, origin in ((second, first), (copy, tmp_path / "runs" / "a" / "general-english")):
        folder = origin.parent if origin.is_file() else next(origin.iterdir())
        shutil.copytree(folder, path.parent)
    change(second, ner={"key": 0.3, "value": 0.5})
    change(copy, seconds={"capture": 99})
    cells, problems = collect(tmp_path)
    assert list(cells["dataset"]) == ["general"]
    reasons = {problem.path: problem.reason for problem in problems}
    assert len(reasons) == 3
    assert "records of the id" in reasons[str(first)]
    assert reasons[str(first)].endswith(f"differ, none is used; see {second}")
    assert reasons[str(second)].endswith(f"see {first}")
    assert "is a copy of" in next(reason for path, reason in reasons.items() if "medical" not in path)


def test_one_spectrum_has_one_value(tmp_path: Path) -> None:
    for number, ner in enumerate((0.25, 0.25, 0.26)):
        write_cell(tmp_path, "a", f"d{number}", spectrum_id="s", ner={"key": ner, "value": 0.5})
    cells, problems = collect(tmp_path)
    assert cells.empty
    assert len(problems) == 3
    assert all(problem.reason.startswith("records of the spectrum s differ") for problem in problems)


def test_a_folder_without_records_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no finished cell under it"):
        collect(tmp_path)
