"""One cell: a model x a dataset x a language x a rank budget; its identity, its folders, is it finished?"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kvcore.locking import is_locked, locked
from kvcore.schema import BusyError, DatasetSettings, NoJudge, SettingError, Settings, TransformersJudge

RECORD_NAME = "record.json"
FAILURE_NAME = "failure.json"
SETTINGS_NAME = "settings.yaml"
RANKS_NAME = "ranks.json"


def identity(content: Mapping[str, Any]) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of the content's canonical JSON."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Cell:
    """The settings of a cell together with the content hashes of what they point at.

    Attributes:
        settings: Checked settings.
        model_revision: Hash of the weights, so that a path or a name never stands for content.
        dataset_revision: Hash of the data file.
        held_out_revision: Hash of the data that is evaluated on, where that is another dataset.
        ranks_revision: Hash of the file with ranks, where the rank budget is one.
        rubric_revision: Hash of the judge's rubric, where there is a judge.
        judge_revision: Hash of the judge's weights, where it is a model in this process.
    """

    settings: Settings
    model_revision: str
    dataset_revision: str
    held_out_revision: str | None = None
    ranks_revision: str | None = None
    rubric_revision: str | None = None
    judge_revision: str | None = None

    @property
    def spectrum_content(self) -> dict[str, Any]:
        """All and only what changes the numbers of a spectrum."""
        settings = self.settings
        return {
            "model": {"revision": self.model_revision}
            | settings.model.model_dump(mode="json", include={"dtype", "attention", "template"}),
            "dataset": _read_from(settings.dataset, self.dataset_revision),
            "held_out_share": settings.evaluation.share,
            "language": settings.language.model_dump(mode="json"),
            "capture": settings.capture.model_dump(mode="json", include={"point", "skip_first_tokens"}),
            "precision": settings.spectrum.precision,
            "seed": settings.seed,
        }

    @property
    def spectrum_id(self) -> str:
        """Identity of the spectrum, shared by all cells with the same model, data and capture settings."""
        return identity(self.spectrum_content)

    @property
    def id(self) -> str:
        """Identity of the cell."""
        settings, held_out = self.settings, self.settings.held_out
        budget = settings.rank_budget.model_dump(mode="json", exclude={"path"})
        names = {"target", "max_examples", "max_tokens"}
        return identity(
            self.spectrum_content
            | {
                "rank_budget": {
                    name: sorted(value) if isinstance(value, list) else value for name, value in budget.items()
                },
                "ranks": self.ranks_revision,
                "per_head": settings.capture.per_head,
                "evaluation": settings.evaluation.model_dump(mode="json", include=names),
                "judge": self._judge_content,
                "held_out": held_out.dataset
                and _read_from(held_out.dataset, self.held_out_revision) | held_out.language.model_dump(mode="json"),
            }
        )

    @property
    def _judge_content(self) -> dict[str, Any] | None:
        """All and only what changes answers and judgements."""
        judge = self.settings.judge
        if isinstance(judge, NoJudge):
            return None
        asked = judge.model_dump(mode="json", include={"name", "prompts", "max_new_tokens", "anchor_share"})
        names = {"base_url", "model", "structured", "temperature", "max_reply_tokens"}
        if isinstance(judge, TransformersJudge):
            who = judge.model.model_dump(mode="json", include={"dtype", "attention", "context"})
        else:
            who = judge.model_dump(mode="json", include=names)
        return asked | who | {"rubric": self.rubric_revision, "weights": self.judge_revision}

    @property
    def output_root(self) -> Path:
        """Where everything is written."""
        return Path(self.settings.output_root).expanduser()

    @property
    def spectrum_folder(self) -> Path:
        """Where the spectrum is, or will be."""
        return self.output_root / "spectra" / self.spectrum_id

    @property
    def checkpoint_folder(self) -> Path:
        """Where unfinished work on the spectrum is kept."""
        return self.output_root / "spectra" / f"{self.spectrum_id}.unfinished"

    @property
    def folder(self) -> Path:
        """Where the cell's results are, or will be."""
        settings = self.settings
        data = f"{settings.dataset.name}-{settings.language.name}"
        return self.output_root / "runs" / settings.model.name / data / self.id

    @property
    def record_path(self) -> Path:
        """The file whose presence says that the cell is finished."""
        return self.folder / RECORD_NAME

    def is_finished(self) -> bool:
        """Say whether the cell's record is there; it is written last."""
        return self.record_path.is_file()

    def described_settings(self) -> dict[str, Any]:
        """Return all settings as plain values, with the content hashes beside the names."""
        values = self.settings.model_dump(mode="json")
        values["model"]["revision"] = self.model_revision
        values["dataset"]["revision"] = self.dataset_revision
        if self.judge_revision:
            values["judge"]["model"]["revision"] = self.judge_revision
        if values["held_out"]["dataset"]:
            values["held_out"]["dataset"]["revision"] = self.held_out_revision
        return values

    def open_folder(self) -> None:
        """Create the cell's folder with its settings, which marks it as begun.

        Raises:
            SettingError: `output_root` cannot be written to.
        """
        text = yaml.safe_dump(self.described_settings(), sort_keys=False, allow_unicode=True)
        with writing_to(self.settings.output_root):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / SETTINGS_NAME, text)
            (self.folder / FAILURE_NAME).unlink(missing_ok=True)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes away from the cell, until this one is done with it or ends.

        Raises:
            BusyError: Another one is at it.
            SettingError: `output_root` cannot be written to.
        """
        path = lock_path(self.output_root, self.folder)
        with ExitStack() as stack:
            with writing_to(self.settings.output_root):
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(locked(path))
                except TimeoutError as error:
                    raise BusyError(f"another process is at work on this cell, in {self.folder}") from error
            yield

    @contextmanager
    def spectrum_claimed(self, say: Callable[[str], None]) -> Iterator[None]:
        """Wait until no other process measures the same spectrum, and keep others away from it.

        Raises:
            SettingError: `output_root` cannot be written to.
        """
        path = lock_path(self.output_root, self.spectrum_folder)
        with ExitStack() as stack:
            with writing_to(self.settings.output_root):
                path.parent.mkdir(parents=True, exist_ok=True)
                if is_locked(path):
                    say("waiting for another process that measures the same spectrum")
                stack.enter_context(locked(path, wait=True))
            yield

    def require_space(self, needed_bytes: int) -> None:
        """Check before the long work that its results will fit on the disk.

        Raises:
            SettingError: The disk under `output_root` has less room.
        """
        free = shutil.disk_usage(self.output_root).free
        if free < needed_bytes:
            allowed = f"its disk has {free / 1e6:.0f} MB free, and this cell may write {needed_bytes / 1e6:.0f} MB"
            raise SettingError("output_root", self.settings.output_root, allowed)


def lock_path(output_root: Path, folder: Path) -> Path:
    """Return the lock of a cell or a spectrum: apart from its folder, which holds results only."""
    return (output_root / "locks" / folder.relative_to(output_root)).with_suffix(".lock")


def _read_from(dataset: DatasetSettings, revision: str | None) -> dict[str, Any]:
    """Return what decides which examples are read, and how."""
    names = {"split", "layout", "columns", "prompt", "max_examples", "max_tokens", "max_length"}
    content = {"revision": revision} | dataset.model_dump(mode="json", include=names)
    if dataset.columns.text:  # then the other columns and the prompt are not read
        content |= {"columns": {"text": dataset.columns.text}, "prompt": None}
    return content


def prepare_output_root(output_root: str) -> None:
    """Create the folders for runs and spectra, and check that they can be written to.

    Raises:
        SettingError: They cannot.
    """
    with writing_to(output_root):
        for name in ("runs", "spectra"):
            folder = Path(output_root).expanduser() / name
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(f"its folder {name} is read-only")


@contextmanager
def writing_to(output_root: str) -> Iterator[None]:
    """Name the folder that cannot be written to.

    Raises:
        SettingError: It cannot.
    """
    try:
        yield
    except OSError as error:
        raise SettingError("output_root", output_root, f"cannot be written to ({error})") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is either absent (or as it was) or complete."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of another when all is written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
