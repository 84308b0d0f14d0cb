"""Truncation: keys and values restricted to their leading directions, in the pass that uses them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from kvcore.compression.allocation import Ranks
from kvcore.model.geometry import Geometry, Projection
from kvcore.model.taps import Point, reached_by_projection, tap
from kvcore.spectrum.tables import Spectra


@contextmanager
def truncated(geometry: Geometry, spectra: Spectra, ranks: Ranks, *, point: Point = "projection") -> Iterator[None]:
    """Project keys and values onto their leading right singular vectors while the block runs.

    Where the point is the output of the projection, K = X W^T + b becomes K V V^T by folding the projector
    P = V V^T into the projection: W' = P W and b' = P b, computed in float64. The forward pass thus costs the
    same at every rank. Normed and rotated keys are projected where they arise. On leaving, exceptions
    included, the very parameters that were there before are back and no hook is left.

    Args:
        geometry: The model's key and value projections.
        spectra: Spectrum by layer and kind, measured at `point`.
        ranks: Rank by layer and kind, 1 to kv_dim; what is not named stays as it is.
        point: Where keys and values are truncated, see `kvcore.model.taps.tap`.

    Raises:
        ValueError: A rank is out of range, or a spectrum does not fit the model.
    """
    projections = {projection.place: projection for projection in geometry}
    for place, rank in ranks.items():
        if place not in projections or spectra[place].kv_dim != projections[place].kv_dim:
            raise ValueError(f"the spectrum of the {place.kind}s of layer {place.layer} does not fit this model")
        if not 1 <= rank <= spectra[place].kv_dim:
            allowed = f"allowed are 1 to {spectra[place].kv_dim}"
            raise ValueError(f"rank = {rank} for the {place.kind}s of layer {place.layer}: {allowed}")
    with ExitStack() as stack:
        for place, rank in ranks.items():
            projection = projections[place]
            basis = spectra[place].right_singular_vectors[:, :rank].to(projection.linear.weight.device)
            if reached_by_projection(projection, point):
                stack.callback(_restore, projection.linear, dict(projection.linear.named_parameters()))
                _fold(projection, basis)
            else:
                stack.callback(tap(projection, point, partial(project, basis=basis)).remove)
        yield


def _restore(linear: nn.Linear, parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        setattr(linear, name, parameter)


def _fold(projection: Projection, basis: Tensor) -> None:
    """Replace the parameters behind a projection's outputs by their projection onto a (kv_dim, rank) basis."""
    for name, parameter in list(projection.linear.named_parameters()):
        exact = parameter.detach()[projection.outputs].double()
        changed = parameter.detach().clone()
        changed[projection.outputs] = (basis @ (basis.T @ exact)).to(parameter.dtype)
        setattr(projection.linear, name, nn.Parameter(changed, requires_grad=False))


def project(rows: Tensor, basis: Tensor) -> Tensor:
    """Return rows V V^T, computed in float32 or better whatever the dtype of the rows.

    Args:
        rows: (..., kv_dim).
        basis: (kv_dim, rank), orthonormal columns V.
    """
    dtype = torch.promote_types(rows.dtype, torch.float32)
    columns = basis.to(rows.device, dtype)
    return ((rows.to(dtype) @ columns) @ columns.T).to(rows.dtype)
