"""Stage: what truncation costs in perplexity."""

from collections.abc import Sequence

from kvcore.compression.allocation import Allocation
from kvcore.data.batches import Batches, make_batches
from kvcore.evaluation.surface import PerplexitySurface, perplexity_surface
from kvcore.preparation import Inputs
from kvcore.progress import StageProgress
from kvcore.schema import SettingError, Settings
from kvcore.spectrum.tables import Spectra


def evaluation_batches(settings: Settings, inputs: Inputs) -> Batches:
    """Return the batches to measure perplexity on.

    Raises:
        SettingError: They have no token to predict.
    """
    evaluation = settings.evaluation
    batches = make_batches(inputs.evaluation.encoded, batch_tokens=evaluation.batch_tokens, target=evaluation.target)
    if not any(batch.targets.any() for batch in batches):
        raise SettingError("evaluation.target", evaluation.target, "these examples have no such token to predict")
    return batches


def evaluate(
    settings: Settings,
    inputs: Inputs,
    spectra: Spectra,
    allocations: Sequence[Allocation],
    batches: Batches,
    progress: StageProgress,
) -> PerplexitySurface:
    """Measure perplexity at every allocation."""
    description = f"perplexity of {len(allocations)} allocations"
    with progress.running("perplexity", description, len(allocations) * batches.token_count) as advance:
        surface = perplexity_surface(
            inputs.model,
            inputs.geometry,
            spectra,
            batches,
            allocations,
            advance,
            point=settings.capture.point,
        )
    # From here on an example is named by its place in its dataset, as in the table of splits.
    numbers = dict(enumerate(inputs.evaluation.numbers))
    return surface._replace(examples=surface.examples.assign(example=surface.examples["example"].map(numbers)))
