"""Capture: run token batches through a model and hand over the keys and values of every layer."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from kvcore.data.batches import Batch
from kvcore.model.forward import hidden_states, inference
from kvcore.model.geometry import Geometry, LayerKind, Projection

Consumer = Callable[[LayerKind, Tensor], None]


class _AllSeenError(Exception):
    """Raised inside the forward pass once the last keys and values are known."""


@contextmanager
def capture(model: PreTrainedModel, geometry: Geometry, consume: Consumer) -> Iterator[Callable[[Batch], None]]:
    """Yield a function that runs one batch and passes on the keys and values of its real tokens.

    The output head is never run, and the forward pass ends when the last layer's keys and values are known.
    The model is left as it was found.

    Args:
        model: The model.
        geometry: Its key and value projections.
        consume: Called with ((layer, kind), rows) for each projection as soon as it is computed; rows are
            (tokens, kv_dim) in the model's dtype and on its device, one for each real token, by example and position.
    """
    mask: Tensor | None = None
    last = geometry.projections[-1]

    def hook_of(projection: Projection) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:  # noqa: ANN401 - torch's signature
            if mask is None:
                raise RuntimeError("the model was run inside capture() by something else than the yielded function")
            consume(projection.place, output[mask.to(output.device)])
            if projection is last:
                raise _AllSeenError

        return hook

    def run(batch: Batch) -> None:
        nonlocal mask
        mask = batch.mask
        try:
            hidden_states(model, batch.tokens, batch.mask)
        except _AllSeenError:
            return
        finally:
            mask = None
        raise RuntimeError("the forward pass ended before its last key and value projection")

    with ExitStack() as stack:
        stack.enter_context(inference(model))
        for projection in geometry:
            handle = projection.linear.register_forward_hook(hook_of(projection))
            stack.callback(handle.remove)
        yield run
