"""Measure the spectra of a model's keys and values on given data."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvcore.capture import capture, wanted_tokens
from kvcore.data.batches import Advance, Batch, doubling_stretches, make_batches, unobserved
from kvcore.data.encoding import check_vocabulary, encode
from kvcore.data.examples import Example
from kvcore.model.geometry import Geometry, LayerKind, discover
from kvcore.model.taps import Point
from kvcore.processes import ALONE, Processes
from kvcore.schema import UserError, first_line
from kvcore.spectrum.accumulation import (
    Accumulation,
    NotFiniteError,
    convergence_table,
    finished_spectra,
    head_table,
    total_of,
)
from kvcore.spectrum.room import free_bytes, groups_of_layers
from kvcore.spectrum.state import Accumulators
from kvcore.spectrum.streaming import Spectrum
from kvcore.spectrum.tables import Spectra, layer_table
from kvcore.spectrum.triangular import ACCUMULATORS

_ROUNDS_BETWEEN_AGREEMENTS = 16


@dataclass(frozen=True)
class Measurement:
    """Spectra of all layers, and how their normalized effective rank settled.

    Attributes:
        spectra: Spectrum by layer and kind, in the order of the forward pass.
        convergence: Columns layer, kind, tokens, ner: the metric at about kv_dim x 1, 2, 4, ... tokens
            (the next end of an example) and at the end.
        heads: Every metric of each KV head alone; columns layer, kind, head, head_dim, and those of `layers`.
        accumulators: What the spectra came from, to be merged with others; empty if they were read from disk.
    """

    spectra: Spectra
    convergence: pd.DataFrame
    heads: pd.DataFrame
    accumulators: Accumulators

    @property
    def layers(self) -> pd.DataFrame:
        """Every metric of every spectrum, see `layer_table`."""
        return layer_table(self.spectra)


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often unfinished work is kept.

    Attributes:
        folder: To be removed by `remove` when the result is safe.
        content: The settings that the numbers depend on; work for other settings is not gone on with.
        seconds: Time between two of them.
        say: Told when work is gone on with, or why not.
    """

    folder: Path
    content: Mapping[str, Any]
    seconds: float
    say: Callable[[str], None] = lambda _: None

    def remove(self) -> None:
        """Throw away what was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    point: Point = "projection",
    skip_first_tokens: int = 0,
    precision: str = "standard",
    max_length: int | None = None,
    batch_tokens: int = 1024,
) -> Measurement:
    """Measure the keys and values of a loaded model on texts, without any configuration.

    Args:
        model: A transformers causal language model of a supported family, or its base model.
        tokenizer: Its tokenizer.
        texts: Texts, each an example of its own, tokenized as `tokenizer(text)`.
        point: Where keys and values are read: `projection`, `normed` or `rotary`, see `kvcore.model.taps.tap`.
        skip_first_tokens: Leave out so many tokens at the start of each text (attention sinks).
        precision: `standard` (a Gram matrix) or `exact` (a triangular factor, for those who need the tail).
        max_length: Longer texts are cut to this many tokens; by default to the model's context.
        batch_tokens: Tokens a batch, padding included; changes speed and memory, not the result.

    Returns:
        The same spectra and layer table that a cell writes.

    Raises:
        ValueError: The model's family is not supported, there is no text, or an activation is not finite.
    """
    if isinstance(texts, str):
        raise ValueError("texts is one string: a sequence of strings is needed")
    geometry = discover(model)
    context = model.config.max_position_embeddings
    encoded = encode([Example(text) for text in texts], tokenizer, max_length=min(max_length or context, context))
    check_vocabulary(encoded, model.config.vocab_size)
    stretches = doubling_stretches(encoded, first_tokens=geometry.max_kv_dim)
    batches = [make_batches(stretch, batch_tokens=batch_tokens) for stretch in stretches]
    return measure_batches(
        model, geometry, batches, point=point, skip_first_tokens=skip_first_tokens, precision=precision
    )


def measure_batches(
    model: PreTrainedModel,
    geometry: Geometry,
    stretches: Sequence[Sequence[Batch]],
    advance: Advance = unobserved,
    *,
    point: Point = "projection",
    skip_first_tokens: int = 0,
    precision: str = "standard",
    checkpoints: Checkpoints | None = None,
    processes: Processes = ALONE,
) -> Measurement:
    """Stream the keys and values of all batches into spectra.

    Where the accumulators of all layers do not fit onto a GPU together, the batches are run again for each
    group of layers that do; what was measured waits in the memory of the machine.

    Args:
        model: The model.
        geometry: Its key and value projections.
        stretches: Token batches, in stretches at whose ends the convergence curve has its points.
        advance: Told the number of tokens of each batch when it is done.
        point: Where keys and values are read, see `kvcore.model.taps.tap`.
        skip_first_tokens: Leave out so many tokens at the start of each example.
        precision: `standard` or `exact`, see `StreamingSVD` and `TriangularSVD`.
        checkpoints: Where unfinished work is kept and gone on with, if anywhere.
        processes: Those among which the batches are shared out; each must call this.

    Raises:
        UserError: A NaN or an infinity among the keys or values, or no token left; names layer and kind.
    """
    spectra: dict[LayerKind, Spectrum] = {}
    accumulators: Accumulators = {}
    curve: list[dict[str, Any]] = []
    heads: list[pd.DataFrame] = []
    head_dims = {found.place: found.head_dim for found in geometry}
    groups = groups_of_layers(geometry, ACCUMULATORS[precision], _least_of(free_bytes, processes))
    if len(groups) > 1 and checkpoints:
        checkpoints.say(f"the accumulators of all layers do not fit: {len(groups)} passes, some layers at a time")
    for number, group in enumerate(groups):
        work = _Work(group, precision, checkpoints, processes, f"{number}-of-{len(groups)}")
        with capture(model, group, work.accumulation.add, point=point, skip_first_tokens=skip_first_tokens) as run:
            work.through(stretches, run, advance, skip_first_tokens)
        total = work.total()
        spectra |= finished_spectra(total)
        heads.append(head_table(total, head_dims))
        accumulators |= {place: accumulator.to("cpu") for place, accumulator in total.items()}
        curve += work.accumulation.curve
        del work, total  # makes room for the next group
    return Measurement(spectra, convergence_table(curve), pd.concat(heads, ignore_index=True), accumulators)


def _least_of(free: Callable[[torch.device], float], processes: Processes) -> Callable[[torch.device], float]:
    """Return the least free memory of any process, so that all make the same groups of layers."""

    def least(device: torch.device) -> float:
        return min(float(found) for found in processes.gather(torch.tensor(free(device), dtype=torch.float64)))

    return least


class _Work:
    """One pass over the batches: what is done, what is kept, and what the other processes did."""

    def __init__(
        self,
        geometry: Geometry,
        precision: str,
        checkpoints: Checkpoints | None,
        processes: Processes,
        name: str,
    ) -> None:
        self._processes = processes
        self._checkpoints = checkpoints
        self._saved_at = time.monotonic()
        self.accumulation = Accumulation.start(geometry, precision)
        if checkpoints:
            share = {"rank": processes.rank, "processes": processes.count, "layers": name}
            self._content = {**checkpoints.content, "share": share}
            self._folder = checkpoints.folder / f"{name}-process-{processes.rank}-of-{processes.count}"
            self._go_on(checkpoints, geometry)

    def _go_on(self, checkpoints: Checkpoints, geometry: Geometry) -> None:
        kept = None
        if self._folder.is_dir():
            try:
                kept = Accumulation.load(self._folder, self._content, geometry)
            except UserError as error:
                checkpoints.say(f"starting anew: {error}")
                shutil.rmtree(self._folder, ignore_errors=True)
        # Who is killed while checkpoints are written leaves those of different moments, which fit no more.
        done = [int(value) for value in self._processes.gather(torch.tensor(kept.batches if kept else 0))]
        if kept and set(done) == {kept.batches}:
            self.accumulation = kept
            checkpoints.say(f"going on after {kept.batches} batches, kept in {self._folder}")

    def through(
        self,
        stretches: Sequence[Sequence[Batch]],
        run: Callable[[Batch], None],
        advance: Advance,
        skip_first_tokens: int,
    ) -> None:
        """Run this process's share of the batches that are not done yet."""
        position = first_example = next_example = 0
        for number, batches in enumerate(stretches, start=1):
            for batch in batches:
                if position >= self.accumulation.batches:
                    if self._processes.takes(position):
                        self._run(batch, run, skip_first_tokens, first_example)
                    else:
                        self.accumulation.batches += 1
                    self._keep()
                position += 1
                next_example += len(batch.examples)
                advance(batch.token_count)
            if number > self.accumulation.stretches:
                self.accumulation.end_stretch(self.total())
            first_example = next_example

    def _run(self, batch: Batch, run: Callable[[Batch], None], skip_first_tokens: int, first_example: int) -> None:
        try:
            run(batch)
            self.accumulation.end_batch()
        except NotFiniteError as error:
            row, token = wanted_tokens(batch, skip_first_tokens).nonzero()[error.row].tolist()
            where = f"batch {self.accumulation.batches}, example {first_example + batch.examples[row]}, token {token}"
            raise UserError(
                f"{error.place.kind}s of layer {error.place.layer} of the model: a NaN or an infinity in {where} "
                "(counted from 0, in the order in which they are read)"
            ) from error

    def _keep(self) -> None:
        if self._checkpoints is None:
            return
        due = time.monotonic() - self._saved_at >= self._checkpoints.seconds
        if self._processes.count > 1:
            rounds, rest = divmod(self.accumulation.batches, self._processes.count)
            due = rest == 0 and rounds % _ROUNDS_BETWEEN_AGREEMENTS == 0 and self._processes.any(due)
        if due:
            try:
                self.accumulation.save(self._folder, self._content)
            except (OSError, SafetensorError) as error:  # no reason to give up what is in memory
                self._checkpoints.say(f"the work so far could not be kept ({first_line(error)})")
            self._saved_at = time.monotonic()

    def total(self) -> Accumulators:
        """Return what all processes have seen together; each must call this."""
        return total_of(self.accumulation.accumulators, self._processes)
