"""Capture: run token batches through a model and hand over the keys and values of every layer."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvcore.data.batches import Batch
from kvcore.model.forward import hidden_states, inference
from kvcore.model.geometry import Geometry, LayerKind, Projection
from kvcore.model.taps import Point, tap

Consumer = Callable[[LayerKind, Tensor], None]


class _AllSeenError(Exception):
    """Raised inside the forward pass once the last keys and values are known."""


@contextmanager
def capture(
    model: PreTrainedModel,
    geometry: Geometry,
    consume: Consumer,
    *,
    point: Point = "projection",
    skip_first_tokens: int = 0,
) -> Iterator[Callable[[Batch], None]]:
    """Yield a function that runs one batch and passes on the keys and values of its real tokens.

    The output head is never run, and the forward pass ends when the last layer's keys and values are known.
    The model is left as it was found.

    Args:
        model: The model.
        geometry: Its key and value projections.
        consume: Called with ((layer, kind), rows) for each projection as soon as it is computed; rows are
            (tokens, kv_dim) in the model's dtype and on its device, one for each token, by example and position.
        point: Where keys and values are read, see `kvcore.model.taps.tap`.
        skip_first_tokens: So many tokens at the start of each example are run but not passed on.
    """
    wanted: dict[torch.device, Tensor] = {}
    missing: set[LayerKind] = set()

    def reader(projection: Projection) -> Callable[[Tensor], None]:
        def read(rows: Tensor) -> None:
            if not wanted:
                raise RuntimeError("the model was run inside capture() by something else than the yielded function")
            if rows.device not in wanted:
                wanted[rows.device] = next(iter(wanted.values())).to(rows.device)
            consume(projection.place, rows.flatten(0, 1).index_select(0, wanted[rows.device]))
            missing.discard(projection.place)
            if not missing:
                raise _AllSeenError

        return read

    def run(batch: Batch) -> None:
        # As indices, found once on the CPU: a mask would make a GPU stop in every layer to count.
        wanted[torch.device("cpu")] = wanted_tokens(batch, skip_first_tokens).flatten().nonzero().squeeze(1)
        missing.update(projection.place for projection in geometry)
        try:
            hidden_states(model, batch.tokens, batch.mask)
        except _AllSeenError:
            return
        finally:
            wanted.clear()
        raise RuntimeError("the forward pass ended before its last keys and values")

    with ExitStack() as stack:
        stack.enter_context(inference(model))
        for projection in geometry:
            stack.callback(tap(projection, point, reader(projection)).remove)
        yield run


def wanted_tokens(batch: Batch, skip_first_tokens: int) -> Tensor:
    """Return (batch, length) bool: true for real tokens, the first ones of each example aside."""
    return batch.mask & (torch.arange(batch.mask.shape[1]) >= skip_first_tokens)
