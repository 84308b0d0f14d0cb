"""What accumulators have seen, as files: sealed against damage, exact, and readable without running anything."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kvcore.cell import write_atomically
from kvcore.model.geometry import KINDS, LayerKind
from kvcore.schema import UserError, first_line
from kvcore.spectrum.streaming import StreamingSVD
from kvcore.spectrum.triangular import ACCUMULATORS

SCHEMA_VERSION = 1
STATE_NAME = "state.json"

Accumulators = dict[LayerKind, StreamingSVD]


class State(NamedTuple):
    """Accumulators, the settings they depend on, and how far the work has come."""

    accumulators: Accumulators
    content: Mapping[str, Any]
    progress: Mapping[str, Any]


def save_state(
    folder: Path,
    accumulators: Mapping[LayerKind, StreamingSVD],
    content: Mapping[str, Any],
    progress: Mapping[str, Any],
) -> None:
    """Write the state of accumulators to a folder, in place of an earlier one there, in one step.

    Files: state-<digest>.safetensors with `layers.<layer>.<kind>`, (kv_dim (kv_dim + 1) / 2,) float64, the packed upper
    triangles; state.json, which names the tensors' digest, carries one of its own and is replaced last.

    Args:
        folder: Created if need be.
        accumulators: By layer and kind.
        content: JSON values: the settings that the numbers depend on.
        progress: JSON values: how far the work has come.

    Raises:
        OSError, SafetensorError: The disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".unfinished-{os.getpid()}.safetensors"
    save_file({place_name(place): found.packed().cpu() for place, found in accumulators.items()}, unfinished)
    digest = file_digest(unfinished)
    tensors = folder / f"state-{digest[:16]}.safetensors"
    unfinished.replace(tensors)
    described = {
        "schema_version": SCHEMA_VERSION,
        "content": content,
        "progress": progress,
        "tensors": {"file": tensors.name, "sha256": digest},
        "accumulators": {
            place_name(place): {"kv_dim": found.kv_dim, "tokens": found.tokens, "precision": found.precision}
            for place, found in accumulators.items()
        },
    }
    write_atomically(folder / STATE_NAME, json.dumps({"seal": seal(described), **described}, indent=1) + "\n")
    for earlier in folder.glob("state-*.safetensors"):
        if earlier != tensors:
            earlier.unlink(missing_ok=True)


def load_state(folder: Path, device: torch.device | str = "cpu") -> State:
    """Read what `save_state` wrote.

    Args:
        folder: Where it was written.
        device: Where the accumulators are to live.

    Raises:
        UserError: There is none, or it is damaged or of another schema version; says which folder to delete.
    """
    try:
        described = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
        if described.pop("seal", None) != seal(described):
            raise ValueError("its seal does not fit its content")
        if described["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {described['schema_version']}, expected {SCHEMA_VERSION}")
        file = folder / Path(described["tensors"]["file"]).name
        if file_digest(file) != described["tensors"]["sha256"]:
            raise ValueError(f"the content of {file.name} is not what was written")
        tensors = load_file(file)
        accumulators = {
            place_named(name): ACCUMULATORS[found["precision"]].unpack(
                tensors[name], found["kv_dim"], found["tokens"], device
            )
            for name, found in described["accumulators"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"the state in {folder} cannot be used ({reason}); delete that folder") from error
    return State(accumulators, described["content"], described["progress"])


def place_name(place: LayerKind) -> str:
    """Return the name of a layer and kind in files: `layers.<layer>.<kind>`."""
    return f"layers.{place.layer}.{place.kind}"


def place_named(name: str) -> LayerKind:
    """Return the layer and kind of a name in files.

    Raises:
        ValueError: It is no such name.
    """
    _, layer, kind = name.split(".")
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}")
    return LayerKind(int(layer), kind)


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def seal(described: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON values in canonical form: another one means that they are damaged."""
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
