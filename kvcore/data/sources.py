"""Where rows come from: a file shipped with the package, or one of the user's."""

import hashlib
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from kvcore.schema import SettingError

Row = dict[str, Any]

_READERS: dict[str, Callable[..., Dataset]] = {
    ".json": Dataset.from_json,
    ".jsonl": Dataset.from_json,
    ".csv": Dataset.from_csv,
    ".parquet": Dataset.from_parquet,
}


def find_data_file(*, source: str, path: str) -> Path:
    """Return the file of a dataset, without reading it.

    Args:
        source: `pocket` (a file shipped with kvcore) or `local` (the user's).
        path: Name of the shipped file, or path of the user's.

    Raises:
        SettingError: There is no such file, it is empty, or its format is not known.
    """
    file = Path(str(files("kvcore.data") / "pocket" / path)) if source == "pocket" else Path(path).expanduser()
    if not file.is_file():
        raise SettingError("dataset.path", path, "there is no such file")
    if file.suffix.lower() not in _READERS:
        raise SettingError("dataset.path", path, f"allowed are files ending in {', '.join(_READERS)}")
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
    # A cache of its own: the shared one recognises a file by path and time, not by content.
    with tempfile.TemporaryDirectory(prefix="kvcore-rows-") as cache:
        try:
            table = _READERS[file.suffix.lower()](str(file), cache_dir=cache, keep_in_memory=True)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            if "corresponds to no data" in reason:  # how datasets puts it
                raise SettingError("dataset.path", str(file), "the file has no rows") from error
            raise SettingError("dataset.path", str(file), f"cannot be read as {file.suffix[1:]} ({reason})") from error
        rows: list[Row] = table.to_list()
    if not rows:
        raise SettingError("dataset.path", str(file), "the file has no rows")
    return rows
