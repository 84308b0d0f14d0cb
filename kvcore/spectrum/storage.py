"""Spectra on disk: safetensors, parquet and JSON, sealed, complete or not there."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kvcore.cell import write_atomically
from kvcore.model.geometry import Geometry
from kvcore.schema import UserError, first_line
from kvcore.spectrum.measurement import Measurement
from kvcore.spectrum.state import file_digest, place_name, place_named, save_state, seal
from kvcore.spectrum.streaming import Spectrum

SCHEMA_VERSION = 2
_TENSORS = "spectrum.safetensors"
_CONVERGENCE = "convergence.parquet"
_HEADS = "heads.parquet"
_SUMMARY = "spectrum.json"


def spectrum_bytes(geometry: Geometry) -> int:
    """Return how many bytes `save_measurement` writes for a model, convergence curve aside."""
    return sum(12 * projection.kv_dim + 8 * projection.kv_dim**2 for projection in geometry)


def save_measurement(folder: Path, measurement: Measurement, content: Mapping[str, Any]) -> None:
    """Write a measurement to a folder that appears only when complete.

    Files: spectrum.safetensors with `layers.<layer>.<kind>.singular_values`, (kv_dim,) float64, and
    `layers.<layer>.<kind>.right_singular_vectors`, (kv_dim, kv_dim) float32, a vector a column;
    convergence.parquet; heads.parquet; state.json and its tensors, to be merged with other spectra (see
    `save_state`); spectrum.json with the settings that the spectrum depends on and the digests of the others.

    Args:
        folder: The folder to create; one that another process has completed meanwhile is kept.
        measurement: What to write.
        content: The settings that the spectrum depends on.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    tensors = {}
    for place, spectrum in measurement.spectra.items():
        tensors[f"{place_name(place)}.singular_values"] = spectrum.singular_values.cpu()
        vectors = spectrum.right_singular_vectors.to(device="cpu", dtype=torch.float32)
        tensors[f"{place_name(place)}.right_singular_vectors"] = vectors.contiguous()
    try:
        with tempfile.TemporaryDirectory(prefix=f".unfinished-{folder.name}-", dir=folder.parent) as workspace:
            complete = Path(workspace) / "complete"
            complete.mkdir()
            save_file(tensors, complete / _TENSORS)
            measurement.convergence.to_parquet(complete / _CONVERGENCE)
            measurement.heads.to_parquet(complete / _HEADS)
            save_state(complete, measurement.accumulators, content, {})
            summary = {
                "schema_version": SCHEMA_VERSION,
                "content": content,
                "tokens": {place_name(place): found.tokens for place, found in measurement.spectra.items()},
                "sha256": {name: file_digest(complete / name) for name in (_TENSORS, _CONVERGENCE, _HEADS)},
            }
            text = json.dumps({"seal": seal(summary), **summary}, indent=2) + "\n"
            write_atomically(complete / _SUMMARY, text)
            if not is_complete(folder):
                complete.rename(folder)
    except (OSError, SafetensorError) as error:
        if not is_complete(folder):  # otherwise another process was faster, with the same content
            raise UserError(f"the spectrum cannot be written to {folder} ({first_line(error)})") from error


def is_complete(folder: Path) -> bool:
    """Say whether a measurement was saved to this folder."""
    return (folder / _SUMMARY).is_file()


def load_measurement(folder: Path) -> Measurement:
    """Read what `save_measurement` wrote, to the CPU, but for the accumulators (see `load_state`).

    Raises:
        UserError: A file is damaged or of another schema version; says which folder to delete.
    """
    try:
        summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
        if summary["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {summary['schema_version']}, expected {SCHEMA_VERSION}")
        if summary.pop("seal", None) != seal(summary):
            raise ValueError(f"the seal of {_SUMMARY} does not fit its content")
        for name, digest in summary["sha256"].items():
            if file_digest(folder / name) != digest:
                raise ValueError(f"the content of {name} is not what was written")
        tensors = load_file(folder / _TENSORS)
        spectra = {
            place_named(name): Spectrum(
                singular_values=tensors[f"{name}.singular_values"],
                right_singular_vectors=tensors[f"{name}.right_singular_vectors"].double(),
                tokens=tokens,
            )
            for name, tokens in summary["tokens"].items()
        }
        return Measurement(spectra, pd.read_parquet(folder / _CONVERGENCE), pd.read_parquet(folder / _HEADS), {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"the spectrum in {folder} cannot be used ({error}); delete that folder to compute it again"
        ) from error
