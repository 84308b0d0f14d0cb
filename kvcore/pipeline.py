"""The order of stages for one cell: the only file that sees them all."""

import json
import os
import traceback
from pathlib import Path

import pandas as pd
from rich.console import Console

from kvcore.cell import FAILURE_NAME, RANKS_NAME, Cell, write_atomically
from kvcore.compression.allocation import Allocation
from kvcore.compression.budgets.ranks_file import write_ranks
from kvcore.data.batches import Batches
from kvcore.evaluation.gates import failed
from kvcore.evaluation.surface import PerplexitySurface, grid_mean_nd_ppl
from kvcore.preparation import Inputs, ModelLoader, Part, identify, load_inputs
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
from kvcore.schema import DatasetSettings, Settings
from kvcore.spectrum.measurement import Measurement
from kvcore.spectrum.tables import is_converged, kv_dims, model_level_ner, tokens_per_dim
from kvcore.stages.allocating import allocate, check_rank_budget
from kvcore.stages.checking import check_gates, recorded_gates, require_trust
from kvcore.stages.evaluating import evaluate, evaluation_batches
from kvcore.stages.measuring import measure_spectra


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
        cell, weights, sources = identify(settings, progress)
        if processes.any(cell.is_finished()):
            if console is not None:
                console.print("This cell is finished, so nothing was run. To run it anew, remove its folder.")
            require_trust(settings, recorded_gates(cell))
            return cell.record_path
        cell.open_folder()
        try:
            inputs = load_inputs(settings, weights, sources, loader or ModelLoader(), progress)
            batches = evaluation_batches(settings, inputs)  # a mistake shows before the long work
            check_rank_budget(settings.rank_budget, inputs.geometry.kv_dims, cell.model_revision)
            measurement = measure_spectra(cell, inputs, progress, processes)
            if measurement is None:
                return cell.record_path
            record, surface, paths = _conclude(cell, inputs, measurement, batches, progress)
        except Exception as error:
            _write_failure(cell, progress.stage, error)
            raise
    if console is not None:
        print_summary(console, record, surface, paths)
    return cell.record_path


def _conclude(
    cell: Cell, inputs: Inputs, measurement: Measurement, batches: Batches, progress: StageProgress
) -> tuple[Record, pd.DataFrame, list[Path]]:
    """Check the gates, measure what truncation costs, and write everything down."""
    settings, spectra = cell.settings, measurement.spectra
    _write_table(cell, "splits", _split_table(inputs))
    _write_table(cell, "layers", measurement.layers)
    _write_table(cell, "convergence", measurement.convergence)
    if settings.capture.per_head:
        _write_table(cell, "heads", measurement.heads)

    gates = check_gates(cell, inputs, spectra, progress)
    require_trust(settings, gates)
    allocations = allocate(cell, inputs, spectra, progress)
    _write_ranks(cell, allocations, measurement)
    surface = evaluate(settings, inputs, spectra, allocations, batches, progress)
    _write_table(cell, "perplexity", surface.points)
    _write_table(cell, "likelihoods", surface.examples)
    with progress.running("figures", "drawing figures"):
        drawings = _draw(cell, measurement, allocations, surface)

    device = inputs.model.device
    record = Record(
        status=UNTRUSTED if failed(gates) else FINISHED,
        id=cell.id,
        spectrum_id=cell.spectrum_id,
        settings=cell.described_settings(),
        tokens=min(spectrum.tokens for spectrum in spectra.values()),
        tokens_per_dim=min(tokens_per_dim(spectrum) for spectrum in spectra.values()),
        converged=all(is_converged(spectrum) for spectrum in spectra.values()),
        ner=model_level_ner(measurement.layers),
        splits=_described_splits(settings, inputs),
        perplexity=_described_perplexity(surface),
        gates=gates,
        versions=library_versions(),
        git_commit=git_commit(),
        device=describe_device(device),
        seconds=progress.seconds,
        peak_memory_bytes=peak_memory_bytes(device),
    )
    record.write(cell.record_path)
    paths = [cell.spectrum_folder, cell.folder / RANKS_NAME, *sorted(cell.folder.glob("*.parquet")), *drawings]
    return record, surface.points, [path for path in paths if path.exists()]


def _split_table(inputs: Inputs) -> pd.DataFrame:
    parts = {"calibration": inputs.calibration, "evaluation": inputs.evaluation}
    return pd.concat(
        [
            pd.DataFrame({"split": name, "example": part.numbers, "tokens": [len(e) for e in part.encoded]})
            for name, part in parts.items()
        ],
        ignore_index=True,
    )


def _described_splits(settings: Settings, inputs: Inputs) -> dict[str, dict[str, object]]:
    def described(part: Part, dataset: DatasetSettings, language: str) -> dict[str, object]:
        return {
            "dataset": dataset.name,
            "language": language,
            "examples": len(part.encoded),
            "tokens": sum(map(len, part.encoded)),
            "cut_examples": part.cut_examples,
            "left_out_rows": part.left_out_rows,
        }

    other = settings.held_out.dataset
    calibration = described(inputs.calibration, settings.dataset, settings.language.name)
    language = settings.held_out.language.name if other else settings.language.name
    evaluation = described(inputs.evaluation, other or settings.dataset, language)
    return {
        "calibration": calibration,
        "evaluation": evaluation | {"in_sample": inputs.in_sample, "shared_examples": inputs.shared_examples},
    }


def _described_perplexity(surface: PerplexitySurface) -> dict[str, object]:
    baseline = surface.points.iloc[0]
    mean, interval = grid_mean_nd_ppl(surface)
    return {
        "baseline": float(baseline["perplexity"]),
        "baseline_interval": [float(baseline["perplexity_low"]), float(baseline["perplexity_high"])],
        "grid_mean_nd_ppl": mean,
        "grid_mean_nd_ppl_interval": None if mean is None else list(interval),
    }


def _write_ranks(cell: Cell, allocations: list[Allocation], measurement: Measurement) -> None:
    write_ranks(
        cell.folder / RANKS_NAME,
        allocations,
        kv_dims(measurement.spectra),
        model=cell.settings.model.name,
        model_revision=cell.model_revision,
    )


def _write_table(cell: Cell, name: str, table: pd.DataFrame) -> None:
    """Write a table in one step: another process may be at the same cell, and ahead."""
    temporary = cell.folder / f".{name}.{os.getpid()}.tmp"
    table.to_parquet(temporary)
    temporary.replace(cell.folder / f"{name}.parquet")


def _draw(
    cell: Cell, measurement: Measurement, allocations: list[Allocation], surface: PerplexitySurface
) -> list[Path]:
    settings = cell.settings
    title = f"{settings.model.name} on {settings.dataset.name}, {settings.language.name}"
    if settings.held_out.dataset:
        title += f"; evaluated on {settings.held_out.dataset.name}, {settings.held_out.language.name}"
    drawn = {"layerwise_ner": figures.layerwise_ner(measurement.layers, title)}
    if settings.rank_budget.name == "grid":
        drawn["perplexity_heatmap"] = figures.perplexity_heatmap(surface.points, title)
    elif len(allocations) > 1:
        drawn["allocation"] = figures.layerwise_ranks(allocations[1:], kv_dims(measurement.spectra), title)
    folder = cell.folder / "figures"
    return [path for name, figure in drawn.items() for path in figures.save_figure(figure, folder, name)]


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
