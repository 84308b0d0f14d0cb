"""The order of stages for one cell: the only file that sees them all."""

import json
import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console
from transformers import PreTrainedModel

from kvcore.cell import FAILURE_NAME, Cell, prepare_output_root, write_atomically
from kvcore.data.batches import Batch, count_tokens, doubling_stretches, make_batches
from kvcore.data.encoding import EncodedExample, check_vocabulary, encode, first_tokens, select
from kvcore.data.examples import examples_from_rows
from kvcore.data.layouts import flatten
from kvcore.data.sources import Data, find_data, read_rows
from kvcore.evaluation.gates import Gate, check_perplexity, check_tail_energy, check_token_count, failed
from kvcore.evaluation.surface import grid_mean_nd_ppl, grid_points, perplexity_surface
from kvcore.model.geometry import Geometry, check_expected, check_family, discover
from kvcore.model.loading import Weights, find_weights, load_model, load_tokenizer, read_config
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
from kvcore.schema import DatasetSettings, GateError, ModelSettings, SettingError, Settings
from kvcore.spectrum.measurement import Measurement, measure_batches
from kvcore.spectrum.storage import is_complete, load_measurement, save_measurement, spectrum_bytes
from kvcore.spectrum.tables import is_converged, model_level_ner, tokens_per_dim

GATE_SAMPLE_TOKENS = 1024
_TABLES_AND_FIGURES_BYTES = 20_000_000


class _Inputs(NamedTuple):
    """What is measured, on what."""

    model: PreTrainedModel
    geometry: Geometry
    encoded: list[EncodedExample]
    left_out_rows: int


def run_cell(settings: Settings, *, console: Console | None = None) -> Path:
    """Run one cell, unless it is finished, and return the path of its record.

    Args:
        settings: Checked settings.
        console: Where the result is printed; nothing is printed without one.

    Raises:
        SettingError: Something the settings point at cannot be used.
        GateError: A gate failed and `gates` is `fail`.
    """
    with StageProgress(visible=console is not None and console.is_terminal) as progress:
        cell, weights, data = _identify(settings, progress)
        if cell.is_finished():
            if console is not None:
                console.print("This cell is finished, so nothing was run. To run it anew, remove its folder.")
            _require_trust(settings, _recorded_gates(cell))
            return cell.record_path
        cell.open_folder()
        try:
            record, surface, paths = _run_stages(cell, weights, data, progress)
        except Exception as error:
            _write_failure(cell, progress.stage, error)
            raise
    if console is not None:
        print_summary(console, record, surface, paths)
    return cell.record_path


def locate_data(dataset: DatasetSettings) -> Data:
    """Find, or fetch, the data that settings name; see `find_data`."""
    return find_data(
        source=dataset.source,
        path=dataset.path,
        id=dataset.id,
        revision=dataset.revision,
        split=dataset.split,
        files=dataset.files,
    )


def locate_weights(model: ModelSettings) -> Weights:
    """Find, or fetch without its tensors, the model that settings name; see `find_weights`."""
    return find_weights(
        source=model.source,
        name=model.name,
        parts=model.parts,
        sha256=model.sha256,
        path=model.path,
        id=model.id,
        revision=model.revision,
        gated=model.gated,
    )


def _identify(settings: Settings, progress: StageProgress) -> tuple[Cell, Weights, Data]:
    """Find weights and data, refuse what cannot be measured, and hash what they contain."""
    with progress.running("prepare", "finding weights and data (packaged weights are dequantised at first use)"):
        dataset, model = settings.dataset, settings.model
        data = locate_data(dataset)
        prepare_output_root(settings.output_root)
        weights = locate_weights(model)
        config = read_config(weights)
        check_family(config)
        context = min(config.max_position_embeddings, model.context or config.max_position_embeddings)
        if dataset.max_length > context:
            allowed = f"the context of model {model.name} is {context} tokens"
            raise SettingError("dataset.max_length", dataset.max_length, allowed)
        return Cell(settings, weights.revision, data.revision), weights, data


def _run_stages(
    cell: Cell, weights: Weights, data: Data, progress: StageProgress
) -> tuple[Record, pd.DataFrame, list[Path]]:
    settings = cell.settings
    inputs = _load(settings, weights, data, progress)
    cell.require_space(spectrum_bytes(inputs.geometry) + _TABLES_AND_FIGURES_BYTES)
    evaluated = _evaluation_batches(settings, inputs.encoded)
    measurement = _measure(cell, inputs, progress)
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


def _load(settings: Settings, weights: Weights, data: Data, progress: StageProgress) -> _Inputs:
    model_settings, dataset = settings.model, settings.dataset
    with progress.running("load", f"loading {model_settings.name}"):
        model = load_model(
            weights,
            dtype=model_settings.dtype,
            device=model_settings.device,
            device_map=model_settings.device_map,
            attention=model_settings.attention,
        )
        tokenizer = load_tokenizer(weights)
        geometry = discover(model)
        check_expected(geometry, **dict(model_settings.expected))
    with progress.running("read", f"reading {dataset.name}"):
        rows = flatten(read_rows(data), dataset.layout, settings.language.name)
        examples = examples_from_rows(rows, prompt_template=dataset.prompt, **dataset.columns.model_dump())
        encoded = encode(
            select(examples, max_examples=dataset.max_examples, seed=settings.seed),
            tokenizer,
            template=model_settings.template,
            max_length=dataset.max_length,
            max_tokens=dataset.max_tokens,
        )
        check_vocabulary(encoded, model.config.vocab_size)
    return _Inputs(model, geometry, encoded, len(rows) - len(examples))


def _evaluation_batches(settings: Settings, encoded: Sequence[EncodedExample]) -> list[Batch]:
    evaluation = settings.evaluation
    if evaluation.max_tokens is not None:
        encoded = first_tokens(encoded, evaluation.max_tokens, "evaluation.max_tokens")
    batches = make_batches(encoded, batch_tokens=evaluation.batch_tokens, target=evaluation.target)
    if not any(batch.targets.any() for batch in batches):
        raise SettingError("evaluation.target", evaluation.target, "these examples have no such token to predict")
    return batches


def _measure(cell: Cell, inputs: _Inputs, progress: StageProgress) -> Measurement:
    """Read the spectrum from disk, where it is computed first if need be: every cell uses the same numbers."""
    if is_complete(cell.spectrum_folder):
        progress.say(f"using the spectrum in {cell.spectrum_folder}")
    else:
        capture = cell.settings.capture
        stretches = doubling_stretches(inputs.encoded, first_tokens=inputs.geometry.max_kv_dim)
        batches = [make_batches(stretch, batch_tokens=capture.batch_tokens) for stretch in stretches]
        description = f"capturing {inputs.geometry.num_layers} layers"
        with progress.running("capture", description, sum(map(count_tokens, batches))) as advance:
            measurement = measure_batches(
                inputs.model,
                inputs.geometry,
                batches,
                advance,
                point=capture.point,
                skip_first_tokens=capture.skip_first_tokens,
            )
            save_measurement(cell.spectrum_folder, measurement, cell.spectrum_content)
    return load_measurement(cell.spectrum_folder)


def _check_gates(cell: Cell, inputs: _Inputs, measurement: Measurement, progress: StageProgress) -> dict[str, Gate]:
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
    inputs: _Inputs,
    measurement: Measurement,
    batches: Sequence[Batch],
    progress: StageProgress,
) -> pd.DataFrame:
    points = grid_points(settings.rank_budget.key_ratios, settings.rank_budget.value_ratios)
    description = f"perplexity at {len(points)} rank ratios"
    with progress.running("perplexity", description, len(points) * count_tokens(batches)) as advance:
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
