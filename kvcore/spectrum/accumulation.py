"""All layers of a model while they are measured: accumulators, the convergence curve, and how far the work has come."""

from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, Self, TypeVar

import pandas as pd
import torch
from torch import Tensor

from kvcore.model.geometry import Geometry, LayerKind
from kvcore.processes import Processes
from kvcore.schema import UserError
from kvcore.spectrum.metrics import normalized_effective_rank
from kvcore.spectrum.state import Accumulators, load_state, save_state
from kvcore.spectrum.streaming import Spectrum, StreamingSVD
from kvcore.spectrum.tables import metrics_of
from kvcore.spectrum.triangular import ACCUMULATORS

_Result = TypeVar("_Result")


class NotFiniteError(ArithmeticError):
    """A NaN or an infinity among the keys or values of a batch.

    Attributes:
        place: Which layer and kind.
        row: Which of the batch's wanted tokens, from 0.
    """

    def __init__(self, place: LayerKind, row: int) -> None:
        """Name the layer, the kind and the row."""
        super().__init__(f"a NaN or an infinity among the {place.kind}s of layer {place.layer}")
        self.place = place
        self.row = row


class Accumulation:
    """What was seen of the keys and values of some or all layers.

    Attributes:
        accumulators: By layer and kind, in the order of the forward pass.
        curve: Rows layer, kind, tokens, ner: the normalized effective rank at the ends of stretches.
        batches: Batches dealt with.
        stretches: Ends of stretches noted in the curve.
    """

    def __init__(
        self,
        accumulators: Accumulators,
        *,
        curve: list[dict[str, Any]] | None = None,
        batches: int = 0,
        stretches: int = 0,
    ) -> None:
        """Go on from what was seen."""
        self.accumulators = accumulators
        self.curve = [] if curve is None else curve
        self.batches = batches
        self.stretches = stretches
        self._finite: list[tuple[LayerKind, Tensor]] = []

    @classmethod
    def start(cls, geometry: Geometry, precision: str = "standard") -> Self:
        """Start with nothing seen, each accumulator on the device of its layer."""
        made = ACCUMULATORS[precision]
        return cls({found.place: made(found.kv_dim, device=found.linear.weight.device) for found in geometry})

    def add(self, place: LayerKind, rows: Tensor) -> None:
        """Add the keys or values of one layer and batch.

        Args:
            place: Which layer and kind.
            rows: (tokens, kv_dim).

        Raises:
            NotFiniteError: One of them is no number; nothing was added. On a GPU only `end_batch` says so.
        """
        if len(rows) == 0:
            return
        if rows.device.type == "cpu":
            lowest, highest = rows.aminmax()  # one pass, and both are NaN if anything is
            if not (lowest.isfinite() and highest.isfinite()):
                raise NotFiniteError(place, int(rows.isfinite().all(dim=1).int().argmin()))
        else:
            self._finite.append((place, rows.isfinite().all(dim=1)))
        self.accumulators[place].update(rows)

    def end_batch(self) -> None:
        """Count a batch.

        Raises:
            NotFiniteError: On a GPU, where looking after every layer would stop the device each time, one of the
                batch's keys or values was no number: what was accumulated is of no use any more.
        """
        device = self._finite[0][1].device if self._finite else None
        if self._finite and not torch.stack([finite.all().to(device) for _, finite in self._finite]).all():
            place, finite = next((place, finite) for place, finite in self._finite if not finite.all())
            raise NotFiniteError(place, int(finite.int().argmin()))
        self._finite.clear()
        self.batches += 1

    def end_stretch(self, total: Accumulators | None = None) -> None:
        """Note the normalized effective rank of every layer and kind so far.

        Args:
            total: What all processes have seen together, if this one saw a share.
        """
        for place, accumulator in (self.accumulators if total is None else total).items():
            if accumulator.tokens:
                ner = normalized_effective_rank(_naming(place, accumulator.singular_values))
                seen = {"layer": place.layer, "kind": place.kind, "tokens": accumulator.tokens}
                self.curve.append(seen | {"ner": ner})
        self.stretches += 1

    def save(self, folder: Path, content: Mapping[str, Any]) -> None:
        """Write everything to a folder, see `save_state`."""
        progress = {"curve": self.curve, "batches": self.batches, "stretches": self.stretches}
        save_state(folder, self.accumulators, content, progress)

    @classmethod
    def load(cls, folder: Path, content: Mapping[str, Any], geometry: Geometry) -> Self:
        """Read what `save` wrote, each accumulator to the device of its layer.

        Raises:
            UserError: There is none, it is damaged, or was written for another `content`.
        """
        state = load_state(folder)
        if state.content != content:
            raise UserError(f"the state in {folder} belongs to other settings; delete that folder")
        accumulators = {}
        for found in geometry:
            accumulators[found.place] = state.accumulators[found.place].to(found.linear.weight.device)
        return cls(accumulators, **state.progress)


def total_of(accumulators: Accumulators, processes: Processes) -> Accumulators:
    """Return what all processes have seen together; each must call this, and all get the same."""
    if processes.count == 1:
        return accumulators
    totals: Accumulators = {}
    for place, own in accumulators.items():
        states = processes.gather(own.packed())
        tokens = processes.gather(torch.tensor(own.tokens))
        shares = [
            type(own).unpack(state, own.kv_dim, int(seen), state.device)
            for state, seen in zip(states, tokens, strict=True)
        ]
        totals[place] = reduce(StreamingSVD.merge, shares)
    return totals


def finished_spectra(accumulators: Accumulators) -> dict[LayerKind, Spectrum]:
    """Decompose everything, each on its device, and move the spectra to the CPU.

    Raises:
        UserError: No token was seen; names layer and kind.
    """
    return {place: _naming(place, accumulator.finish).to("cpu") for place, accumulator in accumulators.items()}


def convergence_table(curve: list[dict[str, Any]]) -> pd.DataFrame:
    """Return columns layer, kind, tokens, ner."""
    return pd.DataFrame(curve).sort_values(["layer", "kind", "tokens"], ignore_index=True)


def head_table(accumulators: Accumulators, head_dims: Mapping[LayerKind, int]) -> pd.DataFrame:
    """Return the metrics of each KV head alone, read off the columns that are its own.

    Args:
        accumulators: By layer and kind.
        head_dims: Dimension of a head, by layer and kind.
    """
    rows = []
    for place, accumulator in accumulators.items():
        head_dim = head_dims[place]
        for head in range(accumulator.kv_dim // head_dim):
            alone = accumulator.columns(head * head_dim, (head + 1) * head_dim).finish()
            labels = {"layer": place.layer, "kind": place.kind, "head": head, "head_dim": head_dim}
            rows.append(labels | metrics_of(alone))
    return pd.DataFrame(rows)


def _naming(place: LayerKind, decompose: Callable[[], _Result]) -> _Result:
    """Decompose, and say of which layer and kind an error speaks."""
    try:
        return decompose()
    except ValueError as error:
        raise UserError(f"{place.kind}s of layer {place.layer} of the model: {error}") from error
