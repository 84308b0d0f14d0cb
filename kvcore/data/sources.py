"""Where rows come from: a file shipped with the package, one of the user's, or a repository elsewhere."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import datasets
import pandas as pd
from datasets import Dataset, load_dataset

from kvcore.data import Row
from kvcore.remote import find_github_files, find_snapshot
from kvcore.schema import SettingError, first_line


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


# What a dataset of the hub may consist of; pictures and the like stay there.
_HUB_FILES = ("*.json", "*.jsonl", "*.csv", "*.parquet", "README.md")


class Data(NamedTuple):
    """Data on this machine.

    Attributes:
        files: Files with rows, read one after the other; of a snapshot of the hub, its folder.
        commit: Of the hub; None for files.
        split: Name of the part of a snapshot that is wanted; None for files.
    """

    files: tuple[Path, ...]
    commit: str | None = None
    split: str | None = None

    def revision(self) -> str:
        """Return what stands for the content: the commit, or a hash of the files, which are read for it."""
        if self.commit is not None:
            return self.commit
        hashes = [file_hash(file) for file in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def find_data(
    *,
    source: str,
    path: str | None = None,
    id: str | None = None,  # noqa: A002 - the name the hub gives it
    revision: str = "main",
    split: str | None = None,
    files: Sequence[str] = (),
) -> Data:
    """Return where a dataset lies on this machine, downloading it if need be, without reading it.

    Args:
        source: `pocket` (a file shipped with kvcore) or `local` (the user's; `path` names them), `hub` (then `id`,
            `revision` and `split` say which) or `github` (then `id`, `revision` and `files` do).
        path: Name of the shipped file, or path of the user's.
        id: OWNER/NAME of a repository.
        revision: Commit, branch or tag of it.
        split: Part of a dataset of the hub, such as `train`.
        files: Paths of files in a repository of GitHub.

    Raises:
        SettingError: It cannot be found or fetched, or its format is not known.
    """
    if source == "hub":
        snapshot = find_snapshot("dataset", str(id), revision, _HUB_FILES, gated=False)
        return Data((snapshot.folder,), snapshot.commit, split)
    if source == "github":
        for name in files:
            if Path(name).suffix.lower() not in _READERS:
                raise SettingError("dataset.files", name, f"allowed are files ending in {', '.join(_READERS)}")
        return Data(tuple(find_github_files(str(id), revision, files)))
    return Data((_find_file(source, str(path)),))


def _find_file(source: str, path: str) -> Path:
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


def read_rows(data: Data) -> list[Row]:
    """Read all rows of what `find_data` found.

    Raises:
        SettingError: A file is not what its ending says, there are no rows, or no such split.
    """
    if data.split is not None:
        return _read_split(data.files[0], data.split)
    return [row for file in data.files for row in _read_file(file)]


def _read_split(folder: Path, split: str) -> list[Row]:
    try:
        with tempfile.TemporaryDirectory(prefix="kvcore-rows-") as workspace:
            rows: list[Row] = load_dataset(str(folder), split=split, cache_dir=workspace, keep_in_memory=True).to_list()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise SettingError("dataset.split", split, f"cannot be read ({first_line(error)})") from error
    if not rows:
        raise SettingError("dataset.split", split, "it has no rows")
    return rows


def _read_file(file: Path) -> list[Row]:
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
