"""Loading a causal language model and its tokenizer from safetensors: packaged, in a folder, or of the hub."""

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
from kvcore.remote import find_snapshot
from kvcore.schema import SettingError, WeightsPart, first_line

# What decides a model's numbers in its folder; a README or a pickled twin of the weights does not.
_CONTENT_SUFFIXES = {".safetensors", ".json", ".model", ".jinja", ".txt"}
_DESCRIPTION = ("*.json", "*.model", "*.jinja", "*.txt")
_TENSORS = ("model*.safetensors",)  # some repositories hold the same weights a second time, consolidated

# Nothing is fetched, and no code that comes with a model is run.
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class Weights(NamedTuple):
    """A folder of weights on this machine, and the setting that leads to it.

    Attributes:
        folder: With config.json, tokenizer files and *.safetensors.
        revision: Hash of the content, or its commit on the hub.
        setting: Name of the setting.
        hub_id: OWNER/NAME on the hub, from where *.safetensors are fetched when the model is loaded.
    """

    folder: Path
    revision: str
    setting: str
    hub_id: str | None = None

    def refused(self, reason: str) -> SettingError:
        """Return the error to raise when they cannot be used."""
        advice = "; delete this folder to have it made anew" if self.setting == "KVCORE_CACHE" else ""
        return SettingError(self.setting, self.hub_id or str(self.folder), reason + advice)


def find_weights(
    *,
    source: str,
    name: str,
    parts: Sequence[WeightsPart] = (),
    sha256: str | None = None,
    path: str | None = None,
    id: str | None = None,  # noqa: A002 - the name the hub gives it
    revision: str = "main",
    gated: bool = False,
) -> Weights:
    """Find the weights, dequantising packaged ones at first use; of those of the hub, fetch all but the tensors.

    Args:
        source: `packaged` (then `parts` and `sha256` say which), `folder` (then `path` does) or `hub` (then `id`
            and `revision` do).
        name: Name of the model.
        parts: Files of installed packages that make up a GGUF file.
        sha256: Hash of that GGUF file.
        path: Folder with config.json, tokenizer files and *.safetensors.
        id: OWNER/NAME on the hub.
        revision: Commit, branch or tag there.
        gated: Whether terms must be accepted there.

    Raises:
        SettingError: The weights are missing, incomplete or not what the hash says.
    """
    if source == "packaged" and sha256 is not None:
        return Weights(dequantised_folder(name, parts, sha256), sha256, "KVCORE_CACHE")
    if source == "hub" and id is not None:
        snapshot = find_snapshot("model", id, revision, _DESCRIPTION, gated=gated)
        return Weights(snapshot.folder, snapshot.commit, "model.id", hub_id=id)
    folder = Path(path or "").expanduser()
    if not (folder / "config.json").is_file():
        raise SettingError("model.path", path, "a folder with config.json, tokenizer files and *.safetensors")
    if not any(folder.glob("*.safetensors")):
        raise SettingError("model.path", path, "no *.safetensors in it, and no other format of weights is read")
    return Weights(folder, _content_hash(folder), "model.path")


def fetch_tensors(weights: Weights) -> None:
    """Download the tensors of weights of the hub, if they are not here yet; do nothing for others.

    Raises:
        SettingError: There are none in the only format that is read, or they cannot be fetched.
    """
    if weights.hub_id is not None:
        find_snapshot("model", weights.hub_id, weights.revision, (*_DESCRIPTION, *_TENSORS), gated=False)
        if not any(weights.folder.glob("*.safetensors")):
            raise weights.refused("no *.safetensors in it, and no other format of weights is read")


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
    weights: Weights,
    *,
    dtype: str = "float32",
    device: str = "auto",
    device_map: str | None = None,
    attention: str = "sdpa",
) -> PreTrainedModel:
    """Load the model in evaluation mode.

    Args:
        weights: Where from.
        dtype: `float32`, `bfloat16` or `float16`.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.
        device_map: How accelerate spreads the layers over devices, such as `auto`; None: all on `device`.
        attention: Attention implementation of transformers: `sdpa` or `eager`.

    Raises:
        SettingError: The device is missing or the weights do not fit the configuration.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("model.device", device, "torch sees no GPU here; allowed: auto, cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    fetch_tensors(weights)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            weights.folder,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            device_map=device_map,
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
    if device_map is None:
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
