"""Gates: checks that tell whether a run can be trusted, made in every run on a sample of its data."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from kvcore.capture import capture, wanted_tokens
from kvcore.compression.allocation import Ranks, rank_at_ratio
from kvcore.compression.truncation import project, truncated
from kvcore.data.batches import Advance, Batch, unobserved
from kvcore.evaluation.perplexity import measure_likelihoods
from kvcore.model.geometry import KINDS, Geometry, LayerKind
from kvcore.model.taps import Point, reached_by_projection
from kvcore.spectrum.tables import Spectra

TAIL_ENERGY_LIMIT = 1e-3
TAIL_ENERGY_RATIO = 0.5
PERPLEXITY_MOVES_LIMIT = 1e-4  # nats per token


@dataclass(frozen=True)
class Gate:
    """The outcome of one check.

    Attributes:
        passed: Whether the numbers can be trusted.
        value: What was measured.
        limit: What it was compared with.
    """

    passed: bool
    value: float
    limit: float


def check_token_count(spectra: Spectra, fed: int) -> Gate:
    """Every layer saw exactly the tokens fed; value: the largest difference, in tokens."""
    difference = max(abs(spectrum.tokens - fed) for spectrum in spectra.values())
    return Gate(difference == 0, difference, 0)


def check_perplexity(
    model: PreTrainedModel,
    geometry: Geometry,
    spectra: Spectra,
    sample: Sequence[Batch],
    advance: Advance = unobserved,
    *,
    point: Point = "projection",
) -> tuple[Gate, Gate]:
    """Truncation to full rank changes nothing, and truncation to rank 1 does.

    Args:
        model: The model.
        geometry: Its key and value projections.
        spectra: Spectrum by layer and kind.
        sample: Batches to score.
        advance: Told the number of tokens of each batch when it is done.
        point: Where keys and values were measured and are truncated.

    Returns:
        The gate of full rank, with |delta NLL| per token as its value; and the gate of rank 1, of keys alone
        and of values alone, with the smaller |delta NLL| per token as its value.
    """

    def mean_nll(ranks: Ranks) -> float:
        with truncated(geometry, spectra, ranks, point=point):
            return measure_likelihoods(model, sample, advance).mean_nll

    baseline = mean_nll({})
    unchanged = abs(mean_nll({place: spectrum.kv_dim for place, spectrum in spectra.items()}) - baseline)
    moved = min(abs(mean_nll({place: 1 for place in spectra if place.kind == kind}) - baseline) for kind in KINDS)
    tolerance = 1e-4 if model.dtype == torch.float32 else 1e-2
    return (
        Gate(unchanged <= tolerance, unchanged, tolerance),
        Gate(moved > PERPLEXITY_MOVES_LIMIT, moved, PERPLEXITY_MOVES_LIMIT),
    )


def check_tail_energy(
    model: PreTrainedModel,
    geometry: Geometry,
    spectra: Spectra,
    sample: Sequence[Batch],
    advance: Advance = unobserved,
    *,
    point: Point = "projection",
    skip_first_tokens: int = 0,
) -> Gate:
    """Truncation to half the rank loses the energy that the spectrum says it loses.

    Predicted: where the sample is all the data, the sum of the squared singular values of the tail; else the
    energy of the sample outside the leading right singular vectors. Measured, one layer and kind after the
    other: the squared Frobenius distance between keys or values as they are and as a truncated model makes
    them from the same inputs.

    Args:
        model: The model.
        geometry: Its key and value projections.
        spectra: Spectrum by layer and kind.
        sample: Batches to compare on.
        advance: Told the number of tokens of each batch when it is done.
        point: Where keys and values were measured and are truncated.
        skip_first_tokens: Tokens at the start of each example that the spectra leave out.

    Returns:
        A gate with the largest relative difference over all layers and kinds as its value.
    """
    ranks = {place: rank_at_ratio(TAIL_ENERGY_RATIO, spectrum.kv_dim) for place, spectrum in spectra.items()}
    loss = _TruncationLoss(geometry, spectra, ranks, point)
    with loss.watching(), capture(model, geometry, loss.add, point=point, skip_first_tokens=skip_first_tokens) as run:
        for batch in sample:
            loss.wanted = wanted_tokens(batch, skip_first_tokens)
            run(batch)
            advance(batch.token_count)
    epsilon = torch.finfo(model.dtype).eps
    rounding = max(epsilon, epsilon**2 / TAIL_ENERGY_LIMIT)
    differences = []
    for place, spectrum in spectra.items():
        seen = loss.energies[place]
        energies = spectrum.singular_values.square() if spectrum.tokens == loss.tokens[place] else seen
        predicted = float(energies[ranks[place] :].sum())
        # Of a tail this small, the rounding of the model's own arithmetic can be more than the limit.
        scale = max(predicted, rounding * float(seen.sum()))
        differences.append(abs(float(loss.squared[place]) - predicted) / scale if scale else 0.0)
    value = float(torch.tensor(differences, dtype=torch.float64).max())  # unlike Python's max, a NaN stays a NaN
    return Gate(value <= TAIL_ENERGY_LIMIT, value, TAIL_ENERGY_LIMIT)


class _TruncationLoss:
    """Sums the squared error of truncation at each layer and kind, for the inputs of the untruncated model.

    Attributes:
        energies: (kv_dim,) float64 by layer and kind: squared length along each right singular vector.
        squared: Squared Frobenius distance by layer and kind, scalar float64.
        tokens: Rows compared by layer and kind.
        wanted: (batch, length) bool of the batch that is being run.
    """

    def __init__(self, geometry: Geometry, spectra: Spectra, ranks: Ranks, point: Point) -> None:
        self._projections = {projection.place: projection for projection in geometry}
        self._ranks = ranks
        self._vectors = {
            place: spectra[place].right_singular_vectors.to(projection.linear.weight.device)
            for place, projection in self._projections.items()
        }
        self._folded = [place for place, found in self._projections.items() if reached_by_projection(found, point)]
        with truncated(geometry, spectra, {place: ranks[place] for place in self._folded}):
            self._parameters = {
                place: (projection.linear.weight, projection.linear.bias)
                for place, projection in self._projections.items()
            }
        self._inputs: dict[LayerKind, Tensor] = {}
        self.energies = {place: torch.zeros(len(v), dtype=torch.float64) for place, v in self._vectors.items()}
        self.squared = {place: torch.zeros((), dtype=torch.float64) for place in self._projections}
        self.tokens = dict.fromkeys(self._projections, 0)
        self.wanted = torch.zeros(0, dtype=torch.bool)

    def watching(self) -> ExitStack:
        """Return a context in which the inputs of folded projections are noted."""
        stack = ExitStack()
        for place in self._folded:
            linear = self._projections[place].linear
            stack.callback(linear.register_forward_pre_hook(self._noting(place)).remove)
        return stack

    def _noting(self, place: LayerKind) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._inputs[place] = inputs[0]

        return hook

    def add(self, place: LayerKind, rows: Tensor) -> None:
        """Compare (tokens, kv_dim) rows with what a truncated model makes of the same inputs."""
        if place in self._inputs:
            inputs = self._inputs.pop(place)
            outputs = functional.linear(inputs[self.wanted.to(inputs.device)], *self._parameters[place])
            truncated_rows = outputs[:, self._projections[place].outputs]
        else:
            truncated_rows = project(rows, self._vectors[place][:, : self._ranks[place]])
        exact = rows.double()
        self.squared[place] += (exact - truncated_rows.double()).square().sum().cpu()
        self.energies[place] += (exact @ self._vectors[place]).square().sum(0).cpu()
        self.tokens[place] += len(rows)


def failed(gates: Mapping[str, Gate]) -> list[str]:
    """Return the names of the gates that did not pass."""
    return [name for name, gate in gates.items() if not gate.passed]
