"""Loading a causal language model and its tokenizer from a folder of safetensors."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kvcore.model.packaged import dequantised_folder
from kvcore.schema import SettingError, WeightsPart

# What decides a model's numbers in its folder; a README or a pickled twin of the weights does not.
_CONTENT_SUFFIXES = {".safetensors", ".json", ".model", ".jinja", ".txt"}


class Weights(NamedTuple):
    """A folder of weights on this machine, and the hash of its content."""

    folder: Path
    revision: str


def find_weights(
    *,
    source: str,
    name: str,
    parts: Sequence[WeightsPart] = (),
    sha256: str | None = None,
    path: str | None = None,
) -> Weights:
    """Find the weights, dequantising packaged ones at first use.

    Args:
        source: `packaged` (then `parts` and `sha256` say which) or `folder` (then `path` does).
        name: Name of the model.
        parts: Files of installed packages that make up a GGUF file.
        sha256: Hash of that GGUF file.
        path: Folder with config.json, tokenizer files and *.safetensors.

    Raises:
        SettingError: The weights are missing, incomplete or not what the hash says.
    """
    if source == "packaged" and sha256 is not None:
        return Weights(dequantised_folder(name, parts, sha256), sha256)
    folder = Path(path or "").expanduser()
    if not (folder / "config.json").is_file():
        raise SettingError("model.path", path, "a folder with config.json, tokenizer files and *.safetensors")
    if not any(folder.glob("*.safetensors")):
        raise SettingError("model.path", path, "no *.safetensors in it, and no other format of weights is read")
    return Weights(folder, _content_hash(folder))


def read_config(weights: Weights) -> PretrainedConfig:
    """Read the model's configuration, without its weights.

    Raises:
        SettingError: transformers cannot read it.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(weights.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise SettingError(
            "model.path", str(weights.folder), f"config.json cannot be used ({_first_line(error)})"
        ) from error
    return config


def load_model(
    weights: Weights, *, dtype: str = "float32", device: str = "auto", attention: str = "sdpa"
) -> PreTrainedModel:
    """Load the model in evaluation mode.

    Args:
        weights: Where from.
        dtype: `float32`, `bfloat16` or `float16`.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.
        attention: Attention implementation of transformers: `sdpa` or `eager`.

    Raises:
        SettingError: The device is missing or the weights do not fit the configuration.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("model.device", device, "torch sees no GPU here; allowed: auto, cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            weights.folder,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise SettingError("model.path", str(weights.folder), f"cannot be loaded ({_first_line(error)})") from error
    model.to(device)  # type: ignore[arg-type] # transformers wraps `to` without its signature
    model.eval()
    return model


def load_tokenizer(weights: Weights) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to the weights.

    Raises:
        SettingError: There is none, or it is not a fast one, whose offsets the framework needs.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(weights.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise SettingError("model.path", str(weights.folder), f"no usable tokenizer ({_first_line(error)})") from error
    return tokenizer


def _content_hash(folder: Path) -> str:
    """Hash the names and contents of the files that decide the model's numbers."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.suffix in _CONTENT_SUFFIXES and file.is_file()):
        with file.open("rb") as content:
            digest.update(f"{file.name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
