"""Loading a causal language model and its tokenizer from a folder of safetensors."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
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
from kvcore.schema import SettingError, WeightsPart, first_line

# What decides a model's numbers in its folder; a README or a pickled twin of the weights does not.
_CONTENT_SUFFIXES = {".safetensors", ".json", ".model", ".jinja", ".txt"}

# Nothing is fetched, and no code that comes with a model is run.
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class Weights(NamedTuple):
    """A folder of weights on this machine, the hash of its content, and the setting that leads to it."""

    folder: Path
    revision: str
    setting: str

    def refused(self, reason: str) -> SettingError:
        """Return the error to raise when they cannot be used."""
        advice = "; delete this folder to have it made anew" if self.setting == "KVCORE_CACHE" else ""
        return SettingError(self.setting, str(self.folder), reason + advice)


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
        return Weights(dequantised_folder(name, parts, sha256), sha256, "KVCORE_CACHE")
    folder = Path(path or "").expanduser()
    if not (folder / "config.json").is_file():
        raise SettingError("model.path", path, "a folder with config.json, tokenizer files and *.safetensors")
    if not any(folder.glob("*.safetensors")):
        raise SettingError("model.path", path, "no *.safetensors in it, and no other format of weights is read")
    return Weights(folder, _content_hash(folder), "model.path")


def read_config(weights: Weights) -> PretrainedConfig:
    """Read the model's configuration, without its weights.

    Raises:
        SettingError: transformers cannot read it.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(weights.folder, **_LOCAL)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise weights.refused(f"config.json cannot be used ({first_line(error)})") from error
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
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            weights.folder,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
            **_LOCAL,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise weights.refused(f"cannot be loaded ({first_line(error)})") from error
    model: PreTrainedModel
    model, found = loaded
    # What is missing, transformers would fill with random numbers.
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, found[fault])):
            listed = f"{fault.replace('_', ' ')} {', '.join(names[:3])}"
            raise weights.refused(f"the weights do not fit config.json: {listed}")
    model.to(device)  # type: ignore[arg-type] # transformers wraps `to` without its signature
    model.eval()
    return model


def load_tokenizer(weights: Weights) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to the weights.

    Raises:
        SettingError: There is none, or it is not a fast one, whose offsets the framework needs.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(weights.folder, **_LOCAL)
    except (OSError, ValueError, KeyError) as error:
        raise weights.refused(f"no usable tokenizer ({first_line(error)})") from error
    if not tokenizer.is_fast:
        raise weights.refused(f"its tokenizer {type(tokenizer).__name__} gives no offsets; a fast one is needed")
    return tokenizer


def _content_hash(folder: Path) -> str:
    """Hash the names and contents of the files that decide the model's numbers."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.suffix in _CONTENT_SUFFIXES and file.is_file()):
        with file.open("rb") as content:
            digest.update(f"{file.name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
