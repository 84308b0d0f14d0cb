"""Stage: everything that a cell leaves on disk, the record last."""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from kvcore.cell import RANKS_NAME, Cell, replacing
from kvcore.compression.allocation import Allocation
from kvcore.compression.budgets.ranks_file import write_ranks
from kvcore.evaluation.gates import Gate, failed
from kvcore.evaluation.judging.scores import mean_over_grid, summarize
from kvcore.evaluation.surface import PerplexitySurface, grid_mean_nd_ppl
from kvcore.preparation import Inputs, Part
from kvcore.progress import StageProgress
from kvcore.results import figures
from kvcore.results.record import (
    FINISHED,
    UNTRUSTED,
    Record,
    describe_device,
    git_commit,
    library_versions,
    peak_memory_bytes,
)
from kvcore.schema import DatasetSettings, Settings
from kvcore.spectrum.measurement import Measurement
from kvcore.spectrum.tables import is_converged, kv_dims, model_level_ner, tokens_per_dim
from kvcore.stages.judging import Judged


class Outcome(NamedTuple):
    """All that was measured."""

    measurement: Measurement
    gates: dict[str, Gate]
    allocations: list[Allocation]
    surface: PerplexitySurface
    judged: Judged | None


def write_measurement(cell: Cell, inputs: Inputs, measurement: Measurement) -> None:
    """Write the tables of spectra and splits."""
    write_table(cell, "splits", _split_table(inputs))
    write_table(cell, "layers", measurement.layers)
    write_table(cell, "convergence", measurement.convergence)
    if cell.settings.capture.per_head:
        write_table(cell, "heads", measurement.heads)


def write_allocations(cell: Cell, allocations: list[Allocation], measurement: Measurement) -> None:
    """Write the ranks."""
    write_ranks(
        cell.folder / RANKS_NAME,
        allocations,
        kv_dims(measurement.spectra),
        model=cell.settings.model.name,
        model_revision=cell.model_revision,
    )


def write_surface(cell: Cell, surface: PerplexitySurface) -> None:
    """Write the tables of perplexity."""
    write_table(cell, "perplexity", surface.points)
    write_table(cell, "likelihoods", surface.examples)


def write_judged(cell: Cell, judged: Judged) -> None:
    """Write answers, judgements and scores."""
    write_table(cell, "answers", judged.answers)
    write_table(cell, "judgements", judged.judgements)
    write_table(cell, "scores", judged.scores)


def write_record(cell: Cell, inputs: Inputs, outcome: Outcome, progress: StageProgress) -> tuple[Record, list[Path]]:
    """Draw the figures and write the record, and return it and the paths of everything."""
    with progress.running("figures", "drawing figures"):
        drawings = _draw(cell, outcome)
    settings, measurement = cell.settings, outcome.measurement
    device, spectra = inputs.model.device, measurement.spectra.values()
    record = Record(
        status=UNTRUSTED if failed(outcome.gates) else FINISHED,
        id=cell.id,
        spectrum_id=cell.spectrum_id,
        settings=cell.described_settings(),
        tokens=min(spectrum.tokens for spectrum in spectra),
        tokens_per_dim=min(tokens_per_dim(spectrum) for spectrum in spectra),
        converged=all(is_converged(spectrum) for spectrum in spectra),
        ner=model_level_ner(measurement.layers),
        splits=_described_splits(settings, inputs),
        perplexity=_described_perplexity(outcome.surface),
        judged=None if outcome.judged is None else _described_judgements(outcome.judged),
        gates=outcome.gates,
        versions=library_versions(),
        git_commit=git_commit(),
        device=describe_device(device),
        seconds=progress.seconds,
        peak_memory_bytes=peak_memory_bytes(device),
    )
    record.write(cell.record_path)
    return record, [cell.spectrum_folder, cell.folder / RANKS_NAME, *sorted(cell.folder.glob("*.parquet")), *drawings]


def write_table(cell: Cell, name: str, table: pd.DataFrame) -> None:
    """Write a table in one step: another process may be at the same cell, and ahead."""
    with replacing(cell.folder / f"{name}.parquet") as temporary:
        table.to_parquet(temporary)


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


def _described_judgements(judged: Judged) -> dict[str, Any]:
    untruncated = judged.scores.iloc[0]
    mean, interval = mean_over_grid(judged.judgements, judged.scores)
    return summarize(judged.judgements) | {
        "untruncated_score": float(untruncated["score"]),
        "untruncated_score_interval": [float(untruncated["score_low"]), float(untruncated["score_high"])],
        "grid_mean_score": mean,
        "grid_mean_score_interval": None if mean is None else list(interval),
    }


def _draw(cell: Cell, outcome: Outcome) -> list[Path]:
    settings, measurement = cell.settings, outcome.measurement
    title = f"{settings.model.name} on {settings.dataset.name}, {settings.language.name}"
    if settings.held_out.dataset:
        title += f"; evaluated on {settings.held_out.dataset.name}, {settings.held_out.language.name}"
    drawn = {"layerwise_ner": figures.layerwise_ner(measurement.layers, title)}
    if settings.rank_budget.name == "grid":
        drawn["perplexity_heatmap"] = figures.perplexity_heatmap(outcome.surface.points, title)
        if outcome.judged:
            drawn["score_heatmap"] = figures.score_heatmap(outcome.judged.scores, title)
    if len(outcome.allocations) > 1:
        drawn["allocation"] = figures.layerwise_ranks(outcome.allocations[1:], kv_dims(measurement.spectra), title)
    folder = cell.folder / "figures"
    return [path for name, figure in drawn.items() for path in figures.save_figure(figure, folder, name)]
