"""Pooling: the spectra of several datasets together, without touching the model."""

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from kvcore.cell import identity, prepare_output_root
from kvcore.schema import UserError
from kvcore.spectrum.accumulation import finished_spectra, head_table
from kvcore.spectrum.measurement import Measurement
from kvcore.spectrum.state import State, load_state
from kvcore.spectrum.storage import is_complete, load_measurement, save_measurement
from kvcore.spectrum.streaming import StreamingSVD
from kvcore.spectrum.tables import layer_table

# What tells the parts of a pool apart; everything else must agree.
_DATA = ("dataset", "language", "seed")


def pool(folders: Sequence[Path], output_root: Path) -> Path:
    """Write the spectrum of everything that several spectra were computed from.

    Args:
        folders: Folders under `spectra/`.
        output_root: The new spectrum is written under its `spectra/`.

    Returns:
        The new folder; its name is the identity of the pool, whatever the order of its parts.

    Raises:
        UserError: A part is not complete, is there twice, or was measured with another model or other settings.
    """
    if len(folders) < 2:
        raise UserError("a pool needs two spectra or more")
    for folder in folders:
        if not is_complete(folder):
            raise UserError(f"{folder} is no complete spectrum")
    states = [load_state(folder) for folder in folders]
    for folder, state in zip(folders, states, strict=True):
        _require_agreement(folders[0], states[0], folder, state)
    parts = sorted((part for state in states for part in _parts(state.content)), key=identity)
    sources = [(part["dataset"]["revision"], part["dataset"]["split"], part["language"]["name"]) for part in parts]
    for source in sources:
        if sources.count(source) > 1:  # whatever part of it seed and limits choose
            raise UserError(f"dataset {source[0][:12]}, {source[2]}, is in the pool twice")
    content = {name: value for name, value in states[0].content.items() if name not in (*_DATA, "pool")} | {
        "pool": parts
    }
    target = output_root / "spectra" / identity(content)
    if not is_complete(target):
        prepare_output_root(str(output_root))
        save_measurement(target, _pooled(folders[0], states), content)
    return target


def _parts(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "pool" in content:
        return list(content["pool"])
    return [{name: content[name] for name in _DATA}]


def _require_agreement(first_folder: Path, first: State, folder: Path, state: State) -> None:
    for name in sorted({*first.content, *state.content} - {*_DATA, "pool"}):
        if first.content.get(name) != state.content.get(name):
            raise UserError(
                f"{first_folder} and {folder} cannot be pooled: {name} is {first.content.get(name)} in one and "
                f"{state.content.get(name)} in the other"
            )
    if list(first.accumulators) != list(state.accumulators):
        raise UserError(f"{first_folder} and {folder} cannot be pooled: they have other layers")


def _pooled(folder: Path, states: Sequence[State]) -> Measurement:
    accumulators = {
        place: reduce(StreamingSVD.merge, [state.accumulators[place] for state in states])
        for place in states[0].accumulators
    }
    head_dims = load_measurement(folder).heads.groupby(["layer", "kind"])["head_dim"].first().to_dict()
    spectra = finished_spectra(accumulators)
    settled = layer_table(spectra)[["layer", "kind", "tokens", "ner"]]  # the only point of the curve that is known
    return Measurement(
        spectra,
        settled,
        head_table(accumulators, {place: int(head_dims[place]) for place in accumulators}),
        accumulators,
    )
