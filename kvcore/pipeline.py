"""The order of stages for one cell: the only file that sees them all."""

import json
import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from kvcore.cell import FAILURE_NAME, Cell, write_atomically
from kvcore.data.batches import Batches, doubling_stretches, make_batches
from kvcore.data.encoding import EncodedExample, first_tokens
from kvcore.evaluation.gates import Gate, check_perplexity, check_tail_energy, check_token_count, failed
from kvcore.evaluation.surface import grid_mean_nd_ppl, grid_points, perplexity_surface
from kvcore.preparation import Inputs, ModelLoader, identify, load_inputs
from kvcore.processes import ALONE, Processes
from kvcore.progress import StageProgress
from kvcore.results import figures
from kvcore.results.record import (
    FINISHED,
    UNTRUSTED,
    Record,
    describe_device,
    finite,
    git_commit,
    library_versions,
    peak_memory_bytes,
)
from kvcore.results.summary import print_summary
from kvcore.schema import GateError, SettingError, Settings
from kvcore.spectrum.measurement import Checkpoints, Measurement, measure_batches
from kvcore.spectrum.storage import is_complete, load_measurement, save_measurement, spectrum_bytes
from kvcore.spectrum.tables import is_converged, model_level_ner, tokens_per_dim

GATE_SAMPLE_TOKENS = 1024
_TABLES_AND_FIGURES_BYTES = 20_000_000


def run_cell(
    settings: Settings,
    *,
    console: Console | None = None,
    loader: ModelLoader | None = None,
    processes: Processes = ALONE,
) -> Path:
    """Run one cell, unless it is finished, and return the path of its record.

    Args:
        settings: Checked settings.
        console: Where the result is printed; nothing is printed without one.
        loader: Keeps the model for the next cell, if that has the same.
        processes: Those that share the capture; each must call this. The first one does everything else.

    Raises:
        SettingError: Something the settings point at cannot be used.
        GateError: A gate failed and `gates` is `fail`.
    """
    with StageProgress(visible=console is not None and console.is_terminal) as progress:
        cell, weights, data = identify(settings, progress)
        if processes.any(cell.is_finished()):
            if console is not None:
                console.print("This cell is finished, so nothing was run. To run it anew, remove its folder.")
            _require_trust(settings, _recorded_gates(cell))
            return cell.record_path
        cell.open_folder()
        try:
            inputs = load_inputs(settings, weights, data, loader or ModelLoader(), progress)
            evaluated = _evaluation_batches(settings, inputs.encoded)  # a mistake shows before the long work
            measurement = _measure(cell, inputs, progress, processes)
            if measurement is None:
                return cell.record_path
            record, surface, paths = _conclude(cell, inputs, measurement, evaluated, progress)
        except Exception as error:
            _write_failure(cell, progress.stage, error)
            raise
    if console is not None:
        print_summary(console, record, surface, paths)
    return cell.record_path


def _conclude(
    cell: Cell, inputs: Inputs, measurement: Measurement, evaluated: Batches, progress: StageProgress
) -> tuple[Record, pd.DataFrame, list[Path]]:
    """Check the gates, measure what truncation costs, and write everything down."""
    settings = cell.settings
    layers = measurement.layers
    _write_table(cell, "layers", layers)
    _write_table(cell, "convergence", measurement.convergence)
    if settings.capture.per_head:
        _write_table(cell, "heads", measurement.heads)

    gates = _check_gates(cell, inputs, measurement, progress)
    _require_trust(settings, gates)
    surface = _evaluate(settings, inputs, measurement, evaluated, progress)
    _write_table(cell, "perplexity", surface)
    with progress.running("figures", "drawing figures"):
        drawings = _draw(cell, layers, surface)

    device = inputs.model.device
    spectra = measurement.spectra.values()
    record = Record(
        status=UNTRUSTED if failed(gates) else FINISHED,
        id=cell.id,
        spectrum_id=cell.spectrum_id,
        settings=cell.described_settings(),
        tokens=min(spectrum.tokens for spectrum in spectra),
        tokens_per_dim=min(tokens_per_dim(spectrum) for spectrum in spectra),
        converged=all(is_converged(spectrum) for spectrum in spectra),
        ner=model_level_ner(layers),
        perplexity={"baseline": float(surface["perplexity"].iloc[0]), "grid_mean_nd_ppl": grid_mean_nd_ppl(surface)},
        gates=gates,
        versions=library_versions(),
        git_commit=git_commit(),
        device=describe_device(device),
        seconds=progress.seconds,
        peak_memory_bytes=peak_memory_bytes(device),
        left_out_rows=inputs.left_out_rows,
        cut_examples=sum(example.full_length > settings.dataset.max_length for example in inputs.encoded),
    )
    record.write(cell.record_path)
    return record, surface, [cell.spectrum_folder, *sorted(cell.folder.glob("*.parquet")), *drawings]


def _evaluation_batches(settings: Settings, encoded: Sequence[EncodedExample]) -> Batches:
    evaluation = settings.evaluation
    if evaluation.max_tokens is not None:
        encoded = first_tokens(encoded, evaluation.max_tokens, "evaluation.max_tokens")
    batches = make_batches(encoded, batch_tokens=evaluation.batch_tokens, target=evaluation.target)
    if not any(batch.targets.any() for batch in batches):
        raise SettingError("evaluation.target", evaluation.target, "these examples have no such token to predict")
    return batches


def _measure(cell: Cell, inputs: Inputs, progress: StageProgress, processes: Processes) -> Measurement | None:
    """Read the spectrum from disk, where it is computed first if need be: every cell uses the same numbers.

    Returns None in all processes but the first.
    """
    skip = cell.settings.capture.skip_first_tokens
    if all(len(example) <= skip for example in inputs.encoded):
        raise SettingError("capture.skip_first_tokens", skip, "no example has more tokens than this")
    cell.require_space(2 * spectrum_bytes(inputs.geometry) + _TABLES_AND_FIGURES_BYTES)
    if processes.any(is_complete(cell.spectrum_folder)):
        progress.say(f"using the spectrum in {cell.spectrum_folder}")
    else:
        capture = cell.settings.capture
        stretches = doubling_stretches(inputs.encoded, first_tokens=inputs.geometry.max_kv_dim)
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
    return load_measurement(cell.spectrum_folder) if processes.is_first else None


def _check_gates(cell: Cell, inputs: Inputs, measurement: Measurement, progress: StageProgress) -> dict[str, Gate]:
    capture = cell.settings.capture
    size = min(GATE_SAMPLE_TOKENS, sum(map(len, inputs.encoded)))
    sample = make_batches(
        first_tokens(inputs.encoded, size, "the sample for the gates"), batch_tokens=capture.batch_tokens
    )
    model, geometry, spectra, skip = inputs.model, inputs.geometry, measurement.spectra, capture.skip_first_tokens
    with progress.running("gates", "checking gates", 5 * size) as advance:
        unchanged, moved = check_perplexity(model, geometry, spectra, sample, advance, point=capture.point)
        return {
            "token_count": check_token_count(spectra, sum(max(0, len(example) - skip) for example in inputs.encoded)),
            "full_rank": unchanged,
            "tail_energy": check_tail_energy(
                model, geometry, spectra, sample, advance, point=capture.point, skip_first_tokens=skip
            ),
            "perplexity_moves": moved,
        }


def _require_trust(settings: Settings, gates: Mapping[str, Gate]) -> None:
    """Fail where a gate failed and the settings do not say to go on."""
    if failed(gates) and settings.gates == "fail":
        faults = [
            f"gate {name}: value {gates[name].value:.3g}, limit {gates[name].limit:.3g}" for name in failed(gates)
        ]
        raise GateError("; ".join(faults))


def _recorded_gates(cell: Cell) -> dict[str, Gate]:
    recorded = json.loads(cell.record_path.read_text(encoding="utf-8"))["gates"]
    return {name: Gate(gate["passed"], float(gate["value"]), float(gate["limit"])) for name, gate in recorded.items()}


def _write_table(cell: Cell, name: str, table: pd.DataFrame) -> None:
    """Write a table in one step: another process may be at the same cell, and ahead."""
    temporary = cell.folder / f".{name}.{os.getpid()}.tmp"
    table.to_parquet(temporary)
    temporary.replace(cell.folder / f"{name}.parquet")


def _evaluate(
    settings: Settings,
    inputs: Inputs,
    measurement: Measurement,
    batches: Batches,
    progress: StageProgress,
) -> pd.DataFrame:
    points = grid_points(settings.rank_budget.key_ratios, settings.rank_budget.value_ratios)
    description = f"perplexity at {len(points)} rank ratios"
    with progress.running("perplexity", description, len(points) * batches.token_count) as advance:
        return perplexity_surface(
            inputs.model,
            inputs.geometry,
            measurement.spectra,
            batches,
            points,
            advance,
            point=settings.capture.point,
        )


def _draw(cell: Cell, layers: pd.DataFrame, surface: pd.DataFrame) -> list[Path]:
    settings = cell.settings
    title = f"{settings.model.name} on {settings.dataset.name}, {settings.language.name}"
    folder = cell.folder / "figures"
    paths = figures.save_figure(figures.layerwise_ner(layers, title), folder, "layerwise_ner")
    if len(surface) > 1:
        paths += figures.save_figure(figures.perplexity_heatmap(surface, title), folder, "perplexity_heatmap")
    return paths


def _write_failure(cell: Cell, stage: str, error: Exception) -> None:
    """Leave word of what went wrong; the cell stays unfinished."""
    failure = {
        "stage": stage,
        "error": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "settings": cell.described_settings(),
    }
    if cell.is_finished():  # by another process
        return
    try:
        write_atomically(cell.folder / FAILURE_NAME, json.dumps(finite(failure), indent=2, ensure_ascii=False) + "\n")
    except OSError:
        return  # a full disk: the error itself is what the user must see
