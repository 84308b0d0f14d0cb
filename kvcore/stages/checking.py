"""Stage: the gates of a cell."""

import json
from collections.abc import Mapping

from kvcore.cell import Cell
from kvcore.data.batches import Batches, make_batches
from kvcore.data.encoding import first_tokens
from kvcore.evaluation.gates import Gate, check_perplexity, check_tail_energy, check_token_count, failed
from kvcore.preparation import Inputs
from kvcore.progress import StageProgress
from kvcore.schema import GateError, Settings, UserError, first_line
from kvcore.spectrum.tables import Spectra

GATE_SAMPLE_TOKENS = 1024


def calibration_sample(inputs: Inputs, tokens: int, batch_tokens: int) -> Batches:
    """Return batches of the first tokens that the spectra were computed from, or of all if there are no more."""
    encoded = inputs.calibration.encoded
    size = min(tokens, sum(map(len, encoded)))
    return make_batches(first_tokens(encoded, size, "the sample"), batch_tokens=batch_tokens)


def check_gates(cell: Cell, inputs: Inputs, spectra: Spectra, progress: StageProgress) -> dict[str, Gate]:
    """Check whether the numbers of a cell can be trusted, on a sample of the data of its spectra."""
    capture = cell.settings.capture
    sample = calibration_sample(inputs, GATE_SAMPLE_TOKENS, capture.batch_tokens)
    model, geometry, skip = inputs.model, inputs.geometry, capture.skip_first_tokens
    fed = sum(max(0, len(example) - skip) for example in inputs.calibration.encoded)
    with progress.running("gates", "checking gates", 5 * sample.token_count) as advance:
        unchanged, moved = check_perplexity(model, geometry, spectra, sample, advance, point=capture.point)
        return {
            "token_count": check_token_count(spectra, fed),
            "full_rank": unchanged,
            "tail_energy": check_tail_energy(
                model, geometry, spectra, sample, advance, point=capture.point, skip_first_tokens=skip
            ),
            "perplexity_moves": moved,
        }


def require_trust(settings: Settings, gates: Mapping[str, Gate]) -> None:
    """Fail where a gate failed and the settings do not say to go on.

    Raises:
        GateError: With the value and the limit of each gate that failed.
    """
    if failed(gates) and settings.gates == "fail":
        faults = [
            f"gate {name}: value {gates[name].value:.3g}, limit {gates[name].limit:.3g}" for name in failed(gates)
        ]
        raise GateError("; ".join(faults))


def recorded_gates(cell: Cell) -> dict[str, Gate]:
    """Read the gates of a finished cell.

    Raises:
        UserError: Its record is damaged.
    """
    try:
        gates = json.loads(cell.record_path.read_text(encoding="utf-8"))["gates"]
        return {name: Gate(gate["passed"], float(gate["value"]), float(gate["limit"])) for name, gate in gates.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{cell.record_path} cannot be read ({first_line(error)}); remove its folder to run that cell anew"
        ) from error
