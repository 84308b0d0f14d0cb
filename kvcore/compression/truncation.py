"""Truncation: keys and values restricted to their leading directions, in the pass that uses them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from kvcore.compression.allocation import Ranks
from kvcore.model.geometry import Geometry
from kvcore.spectrum.tables import Spectra


@contextmanager
def truncated(geometry: Geometry, spectra: Spectra, ranks: Ranks) -> Iterator[None]:
    """Project keys and values onto their leading right singular vectors while the block runs.

    K = X W^T + b becomes K V V^T by folding the projector P = V V^T into the projection: W' = P W and
    b' = P b, computed in float64. The forward pass thus costs the same at every rank. On leaving, exceptions
    included, the very parameters that were there before are back.

    Args:
        geometry: The model's key and value projections.
        spectra: Spectrum by layer and kind.
        ranks: Rank by layer and kind, 1 to kv_dim; what is not named stays as it is.

    Raises:
        ValueError: A rank is out of range, or a spectrum does not fit the model.
    """
    linears = {projection.place: projection.linear for projection in geometry}
    for place, rank in ranks.items():
        if place not in linears or spectra[place].kv_dim != linears[place].out_features:
            raise ValueError(f"the spectrum of the {place.kind}s of layer {place.layer} does not fit this model")
        if not 1 <= rank <= spectra[place].kv_dim:
            raise ValueError(
                f"rank = {rank} for the {place.kind}s of layer {place.layer}: allowed are 1 to {spectra[place].kv_dim}"
            )
    originals = {place: (linears[place].weight, linears[place].bias) for place in ranks}
    try:
        for place, rank in ranks.items():
            _fold(linears[place], spectra[place].right_singular_vectors[:, :rank])
        yield
    finally:
        for place, (weight, bias) in originals.items():
            linears[place].weight = weight
            linears[place].bias = bias


def _fold(linear: nn.Linear, basis: Tensor) -> None:
    """Replace the parameters of a linear layer by their projection onto a (kv_dim, rank) basis."""

    def folded(parameter: Tensor) -> nn.Parameter:
        basis_there = basis.to(device=parameter.device)
        exact = basis_there @ (basis_there.T @ parameter.detach().double())
        return nn.Parameter(exact.to(parameter.dtype), requires_grad=False)

    linear.weight = folded(linear.weight)
    if linear.bias is not None:
        linear.bias = folded(linear.bias)
