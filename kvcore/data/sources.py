"""Where rows come from: a file shipped with the package, or one of the user's."""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from datasets import Dataset

from kvcore.schema import SettingError, first_line

Row = dict[str, Any]


def _read_csv(path: str, **_settings: object) -> Dataset:
    """Read text as it stands: nothing becomes a number or, such as "None", a gap; a surplus field is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return Dataset.from_pandas(pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False))


_READERS: dict[str, Callable[..., Dataset]] = {
    ".json": Dataset.from_json,
    ".jsonl": Dataset.from_json,
    ".csv": _read_csv,
    ".parquet": Dataset.from_parquet,
}

# How datasets says that there is none.
_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")


def find_data_file(*, source: str, path: str) -> Path:
    """Return the file of a dataset, without reading it.

    Args:
        source: `pocket` (a file shipped with kvcore) or `local` (the user's).
        path: Name of the shipped file, or path of the user's.

    Raises:
        SettingError: There is no such file, it is empty or unreadable, or its format is not known.
    """
    file = Path(str(files("kvcore.data") / "pocket" / path)) if source == "pocket" else Path(path).expanduser()
    if not file.is_file():
        where = " among those shipped with kvcore; your own go with dataset=local" if source == "pocket" else ""
        raise SettingError("dataset.path", path, f"there is no such file{where}")
    if file.suffix.lower() not in _READERS:
        raise SettingError("dataset.path", path, f"allowed are files ending in {', '.join(_READERS)}")
    if not os.access(file, os.R_OK):
        raise SettingError("dataset.path", path, "the file may not be read")
    if file.stat().st_size == 0:
        raise SettingError("dataset.path", path, "the file is empty")
    return file


def file_hash(file: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_rows(file: Path) -> list[Row]:
    """Read all rows of a file found by `find_data_file`.

    Raises:
        SettingError: The file is not what its ending says, or has no rows.
    """
    ending = file.suffix.lower()
    if ending in {".json", ".jsonl"} and not _starts_like_json_rows(file):
        reason = "rows are objects, {...}"
        raise SettingError("dataset.path", str(file), f"cannot be read as {ending[1:]} ({reason})")
    try:
        with tempfile.TemporaryDirectory(prefix="kvcore-rows-") as workspace:
            # Under a plain name, for datasets takes [ ] * ? and :: in a path as patterns; and with a cache of
            # its own, for the shared one recognises a file by path and time, not by content.
            plain = Path(workspace) / f"rows{ending}"
            plain.symlink_to(file.resolve())
            table = _READERS[ending](str(plain), cache_dir=workspace, keep_in_memory=True)
            rows: list[Row] = table.to_list()
    except (OSError, ValueError, pd.errors.ParserWarning, datasets.exceptions.DatasetsError) as error:
        reason = first_line(error.__cause__ or error)
        if any(known in reason for known in _NO_ROWS):
            raise SettingError("dataset.path", str(file), "the file has no rows") from error
        raise SettingError("dataset.path", str(file), f"cannot be read as {ending[1:]} ({reason})") from error
    if not rows:
        raise SettingError("dataset.path", str(file), "the file has no rows")
    return rows


def _starts_like_json_rows(file: Path) -> bool:
    """Look at the first character: for a bare value such as null, the reader would crash."""
    with file.open(encoding="utf-8-sig", errors="replace") as text:
        return next((line.lstrip()[0] in "[{" for line in text if line.strip()), True)
