"""How many layers can be accumulated at once on the GPUs there are."""

import math
from collections import defaultdict
from collections.abc import Callable

import torch

from kvcore.model.geometry import Geometry, Projection
from kvcore.schema import UserError
from kvcore.spectrum.streaming import StreamingSVD

# Of the memory that is free, for accumulators; the forward pass and the decomposition need the rest.
_SHARE = 0.7


def free_bytes(device: torch.device) -> float:
    """Return the free memory of a GPU; no limit elsewhere, for what was measured ends up in the machine's memory."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else math.inf


def groups_of_layers(
    geometry: Geometry, made: type[StreamingSVD], free: Callable[[torch.device], float] = free_bytes
) -> list[Geometry]:
    """Split the layers, in their order, into as few groups as have room on their devices.

    Args:
        geometry: The key and value projections.
        made: Which accumulators.
        free: The free bytes of a device.

    Raises:
        UserError: There is no room for a single layer.
    """
    room: dict[torch.device, float] = {}
    groups: list[list[Projection]] = [[]]
    used: dict[torch.device, int] = defaultdict(int)
    for layer in range(geometry.num_layers):
        projections = [found for found in geometry if found.place.layer == layer]
        needed: dict[torch.device, int] = defaultdict(int)
        for found in projections:
            needed[found.linear.weight.device] += made.bytes_needed(found.kv_dim)
        for device, size in needed.items():
            if device not in room:
                room[device] = _SHARE * free(device)
            if size > room[device]:
                raise UserError(
                    f"layer {layer} needs {size / 1e9:.1f} GB for its accumulators, and {device} has room for "
                    f"{room[device] / 1e9:.1f} GB"
                )
        if any(used[device] + size > room[device] for device, size in needed.items()):
            groups.append([])
            used.clear()
        for device, size in needed.items():
            used[device] += size
        groups[-1] += projections
    return [Geometry(tuple(group)) for group in groups]
