"""Measure the spectra of a model's keys and values on given data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvcore.capture import capture
from kvcore.data.batches import Advance, Batch, doubling_stretches, make_batches, unobserved
from kvcore.data.encoding import check_vocabulary, encode
from kvcore.data.examples import Example
from kvcore.model.geometry import Geometry, LayerKind, discover
from kvcore.model.taps import Point
from kvcore.schema import UserError
from kvcore.spectrum.metrics import normalized_effective_rank
from kvcore.spectrum.streaming import StreamingSVD
from kvcore.spectrum.tables import Spectra, layer_table, metrics_of

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Measurement:
    """Spectra of all layers, and how their normalized effective rank settled.

    Attributes:
        spectra: Spectrum by layer and kind, in the order of the forward pass.
        convergence: Columns layer, kind, tokens, ner: the metric at about kv_dim x 1, 2, 4, ... tokens
            (the next end of an example) and at the end.
        heads: Every metric of each KV head alone; columns layer, kind, head, head_dim, and those of `layers`.
    """

    spectra: Spectra
    convergence: pd.DataFrame
    heads: pd.DataFrame

    @property
    def layers(self) -> pd.DataFrame:
        """Every metric of every spectrum, see `layer_table`."""
        return layer_table(self.spectra)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    point: Point = "projection",
    skip_first_tokens: int = 0,
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
    return measure_batches(model, geometry, batches, point=point, skip_first_tokens=skip_first_tokens)


def measure_batches(
    model: PreTrainedModel,
    geometry: Geometry,
    stretches: Sequence[Sequence[Batch]],
    advance: Advance = unobserved,
    *,
    point: Point = "projection",
    skip_first_tokens: int = 0,
) -> Measurement:
    """Stream the keys and values of all batches into spectra.

    Args:
        model: The model.
        geometry: Its key and value projections.
        stretches: Token batches, in stretches at whose ends the convergence curve has its points.
        advance: Told the number of tokens of each batch when it is done.
        point: Where keys and values are read, see `kvcore.model.taps.tap`.
        skip_first_tokens: Leave out so many tokens at the start of each example.

    Raises:
        UserError: A NaN or an infinity among the keys or values, or no token left; names layer and kind.
    """
    accumulators = {
        projection.place: StreamingSVD(projection.kv_dim, device=projection.linear.weight.device)
        for projection in geometry
    }
    curve = _ConvergenceCurve(accumulators)

    def consume(place: LayerKind, rows: Tensor) -> None:
        accumulators[place].update(rows)

    with capture(model, geometry, consume, point=point, skip_first_tokens=skip_first_tokens) as run:
        for batches in stretches:
            for batch in batches:
                run(batch)
                advance(batch.token_count)
            curve.record()
    spectra = {place: _naming(place, accumulator.finish) for place, accumulator in accumulators.items()}
    return Measurement(spectra, curve.table(), _head_table(geometry, accumulators))


def _head_table(geometry: Geometry, accumulators: Mapping[LayerKind, StreamingSVD]) -> pd.DataFrame:
    """Return the metrics of each KV head alone, read off the blocks on the diagonal of the joint Gram matrices."""
    rows = []
    for projection in geometry:
        for head in range(projection.num_kv_heads):
            start = head * projection.head_dim
            alone = accumulators[projection.place].columns(start, start + projection.head_dim).finish()
            place = {"layer": projection.place.layer, "kind": projection.place.kind, "head": head}
            rows.append(place | {"head_dim": projection.head_dim} | metrics_of(alone))
    return pd.DataFrame(rows)


def _naming(place: LayerKind, decompose: Callable[[], _Result]) -> _Result:
    """Decompose, and say of which layer and kind an error speaks."""
    try:
        return decompose()
    except ValueError as error:
        raise UserError(f"{place.kind}s of layer {place.layer} of the model: {error}") from error


class _ConvergenceCurve:
    """Notes the normalized effective rank at the moments when it is told to."""

    def __init__(self, accumulators: Mapping[LayerKind, StreamingSVD]) -> None:
        self._accumulators = accumulators
        self._rows: list[Mapping[str, object]] = []

    def record(self) -> None:
        for place, accumulator in self._accumulators.items():
            if accumulator.tokens:
                ner = normalized_effective_rank(_naming(place, accumulator.singular_values))
                seen = {"layer": place.layer, "kind": place.kind, "tokens": accumulator.tokens}
                self._rows.append(seen | {"ner": ner})

    def table(self) -> pd.DataFrame:
        table = pd.DataFrame(self._rows)
        return table.sort_values(["layer", "kind", "tokens"], ignore_index=True)
