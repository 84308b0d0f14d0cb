"""Stage: the spectra of a cell, computed once for all cells that share them."""

from contextlib import nullcontext

from kvcore.cell import Cell
from kvcore.data.batches import doubling_stretches, make_batches
from kvcore.preparation import Inputs
from kvcore.processes import Processes
from kvcore.progress import StageProgress
from kvcore.schema import SettingError
from kvcore.spectrum.measurement import Checkpoints, Measurement, measure_batches
from kvcore.spectrum.storage import is_complete, load_measurement, save_measurement, spectrum_bytes

_TABLES_AND_FIGURES_BYTES = 20_000_000


def measure_spectra(cell: Cell, inputs: Inputs, progress: StageProgress, processes: Processes) -> Measurement | None:
    """Read the spectra from disk, where they are computed first if need be: every cell uses the same numbers.

    Returns None in all processes but the first.
    """
    skip = cell.settings.capture.skip_first_tokens
    if all(len(example) <= skip for example in inputs.calibration.encoded):
        raise SettingError("capture.skip_first_tokens", skip, "no example has more tokens than this")
    cell.require_space(2 * spectrum_bytes(inputs.geometry) + _TABLES_AND_FIGURES_BYTES)
    with cell.spectrum_claimed(progress.say) if processes.is_first else nullcontext():
        _measure(cell, inputs, progress, processes)
    return load_measurement(cell.spectrum_folder) if processes.is_first else None


def _measure(cell: Cell, inputs: Inputs, progress: StageProgress, processes: Processes) -> None:
    encoded, capture = inputs.calibration.encoded, cell.settings.capture
    if processes.any(is_complete(cell.spectrum_folder)):
        progress.say(f"using the spectrum in {cell.spectrum_folder}")
    else:
        stretches = doubling_stretches(encoded, first_tokens=inputs.geometry.max_kv_dim)
        batches = [make_batches(stretch, batch_tokens=capture.batch_tokens) for stretch in stretches]
        description = f"capturing {inputs.geometry.num_layers} layers"
        with progress.running("capture", description, sum(stretch.token_count for stretch in batches)) as advance:
            checkpoints = Checkpoints(
                cell.checkpoint_folder,
                cell.spectrum_content | {"batch_tokens": capture.batch_tokens},
                capture.checkpoint_seconds,
                progress.say,
            )
            measurement = measure_batches(
                inputs.model,
                inputs.geometry,
                batches,
                advance,
                point=capture.point,
                skip_first_tokens=capture.skip_first_tokens,
                precision=cell.settings.spectrum.precision,
                checkpoints=checkpoints,
                processes=processes,
            )
            if processes.is_first:
                save_measurement(cell.spectrum_folder, measurement, cell.spectrum_content)
                checkpoints.remove()
