"""Files of every format, and files that are none."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from kvcore.data.examples import examples_from_rows
from kvcore.data.sources import Data, file_hash, find_data, read_rows
from kvcore.schema import SettingError

ROWS = [
    {"instruction": "Add 2 and 3.", "output": "5"},
    {"instruction": "Name a river, and a bay.", "output": "The Loire;\nBiscay: \u00e9t\u00e9"},
]


def write(path: Path) -> Path:
    table = pd.DataFrame(ROWS)
    if path.suffix == ".json":
        path.write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return path


def find(path: Path) -> Data:
    return find_data(source="local", path=str(path))


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"data.{ending}")
    rows = read_rows(find(path))
    if ending == "csv":  # a column of numbers is read as numbers; this one holds text too
        assert [row["output"] for row in rows] == ["5", ROWS[1]["output"]]
    assert rows == ROWS


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "one"}\n')
    first = read_rows(find(path)), file_hash(path)
    stamp = path.stat()
    path.write_text('{"text": "two"}\n')
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (first[0], read_rows(find(path))) == ([{"text": "one"}], [{"text": "two"}])
    assert file_hash(path) != first[1]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("missing.json", None, "there is no such file"),
        ("empty.json", "", "the file is empty"),
        ("rowless.json", "[]", "the file has no rows"),
        ("blank.jsonl", "\n\n", "the file has no rows"),
        ("null.json", "null", r"rows are objects, \{...\}"),
        ("value.jsonl", "3", "cannot be read as jsonl"),
        ("broken.json", '[{"a": 1}, {"a":', "cannot be read as json"),
        ("broken.parquet", "no parquet", "cannot be read as parquet"),
        ("header.csv", "instruction,output\n", "the file has no rows"),
        ("notes.txt", "hello", "allowed are files ending in .json, .jsonl, .csv, .parquet"),
    ],
)
def test_unusable_files_are_one_clear_error(tmp_path: Path, name: str, content: str | None, complaint: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingError, match=f"dataset.path = .*({complaint})") as caught:
        read_rows(find(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["data[1].jsonl", "wh?t.jsonl", "a*.jsonl", "a::b.jsonl", "spaced name.jsonl"])
def test_a_file_name_is_never_a_pattern(tmp_path: Path, name: str) -> None:
    for neighbour in ("data1.jsonl", "what.jsonl", "ab.jsonl"):
        (tmp_path / neighbour).write_text('{"text": "wrong"}\n')
    (tmp_path / name).write_text('{"text": "right"}\n')
    assert read_rows(find(tmp_path / name)) == [{"text": "right"}]


def test_csv_is_text_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("question,answer\nWhich value?,None\nWhich code?,00123\nWhich gap?,\n")
    assert [row["answer"] for row in read_rows(find(path))] == ["None", "00123", ""]


def test_surplus_fields_shift_no_column(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("question,answer\nq,a,surplus\nq,a,surplus\n")
    with pytest.raises(SettingError, match="cannot be read as csv"):
        read_rows(find(path))


def test_a_path_of_ones_own_without_its_source_is_explained() -> None:
    with pytest.raises(SettingError, match="your own go with dataset=local"):
        find_data(source="pocket", path="my.json")


def test_rows_need_not_have_the_same_columns(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": "one", "b": "x"}]')
    (tmp_path / "b.json").write_text('[{"b": "y"}]')
    rows = read_rows(Data((tmp_path / "a.json", tmp_path / "b.json")))
    assert [example.response for example in examples_from_rows(rows, prompt_template="", text="b")] == ["x", "y"]
    assert [example.response for example in examples_from_rows(rows, prompt_template="", text="a")] == ["one"]


def test_files_of_a_repository_have_a_known_format() -> None:
    with pytest.raises(SettingError, match=r"dataset.files = 'notes.txt': allowed are files ending in .json"):
        find_data(source="github", id="owner/name", files=["notes.txt"])


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no such file"):
        find(tmp_path)
