"""The order of stages for one cell: the only file that sees them all."""

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from kvcore.cell import FAILURE_NAME, Cell, write_atomically
from kvcore.data.batches import Batches
from kvcore.preparation import Inputs, ModelLoader, Sources, identify, load_inputs
from kvcore.processes import ALONE, Processes
from kvcore.progress import StageProgress
from kvcore.results.printing.cell import print_summary
from kvcore.results.record import Record, finite
from kvcore.schema import BusyError, Settings
from kvcore.spectrum.measurement import Measurement
from kvcore.stages.allocating import allocate, check_rank_budget
from kvcore.stages.checking import check_gates, recorded_gates, require_trust
from kvcore.stages.evaluating import evaluate, evaluation_batches
from kvcore.stages.judging import Court, convene, judge_allocations, require_judgements
from kvcore.stages.measuring import measure_spectra
from kvcore.stages.recording import (
    Outcome,
    write_allocations,
    write_judged,
    write_measurement,
    write_record,
    write_surface,
)
from kvcore.stages.tracking import track


def run_cell(
    settings: Settings,
    *,
    console: Console | None = None,
    loader: ModelLoader | None = None,
    processes: Processes = ALONE,
    begin: Callable[[Cell], None] = lambda _: None,
) -> Path:
    """Run one cell, unless it is finished, and return the path of its record.

    Args:
        settings: Checked settings.
        console: Where the result is printed; nothing is printed without one.
        loader: Keeps the model for the next cell, if that has the same.
        processes: Those that share the capture; each must call this. The first one does everything else.
        begin: Told which cell it is, before anything is run.

    Raises:
        SettingError: Something the settings point at cannot be used.
        GateError: A gate failed and `gates` is `fail`.
        BusyError: Another process is at work on the same cell.
    """
    loader = loader or ModelLoader()
    with StageProgress(visible=console is not None and console.is_terminal) as progress:
        cell, sources = identify(settings, progress)
        begin(cell)
        written = None
        if not processes.any(cell.is_finished()):
            with _claimed(cell, processes):
                if not processes.any(cell.is_finished()):  # by a process that was a moment faster
                    written = _run(cell, sources, loader, progress, processes, console)
                    if not processes.is_first:
                        return cell.record_path
    if written is None:
        if console is not None:
            console.print("This cell is finished, so nothing was run. To run it anew, remove its folder.")
        require_trust(settings, recorded_gates(cell))
        require_judgements(cell)
        return cell.record_path
    if console is not None:
        record, outcome, paths = written
        print_summary(console, record, outcome.surface.points, outcome.judged and outcome.judged.scores, paths)
    track(cell, console)
    return cell.record_path


@contextmanager
def _claimed(cell: Cell, processes: Processes) -> Iterator[None]:
    """Keep others away; if the first process finds the cell taken, all of these leave it."""
    with ExitStack() as stack:
        taken = None
        if processes.is_first:
            try:
                stack.enter_context(cell.claimed())
            except BusyError as error:
                taken = error
        if processes.any(taken is not None):
            raise taken or BusyError("another process is at work on this cell")
        yield


def _run(
    cell: Cell,
    sources: Sources,
    loader: ModelLoader,
    progress: StageProgress,
    processes: Processes,
    console: Console | None,
) -> tuple[Record, Outcome, list[Path]] | None:
    """Run all stages; None in all processes but the first."""
    cell.open_folder()
    try:
        inputs = load_inputs(cell.settings, sources, loader, progress)
        batches = evaluation_batches(cell.settings, inputs)  # a mistake shows before the long work
        check_rank_budget(cell.settings.rank_budget, inputs.geometry.kv_dims, cell.model_revision)
        court = convene(cell, inputs, sources.judge, loader, progress) if processes.is_first else None
        measurement = measure_spectra(cell, inputs, progress, processes)
        if measurement is None:
            return None
        write_measurement(cell, inputs, measurement)
        outcome = _measure_cost(cell, inputs, measurement, batches, court, progress)
        record, paths = write_record(cell, inputs, outcome, progress)
    except Exception as error:
        if _write_failure(cell, progress.stage, error) and processes.is_first:
            track(cell, console)
        raise
    return record, outcome, paths


def _measure_cost(
    cell: Cell,
    inputs: Inputs,
    measurement: Measurement,
    batches: Batches,
    court: Court | None,
    progress: StageProgress,
) -> Outcome:
    """Check the gates, and measure what truncation costs; what is known is written down at once."""
    settings, spectra = cell.settings, measurement.spectra
    gates = check_gates(cell, inputs, spectra, progress)
    require_trust(settings, gates)
    allocations = allocate(cell, inputs, spectra, progress)
    write_allocations(cell, allocations, measurement)
    surface = evaluate(settings, inputs, spectra, allocations, batches, progress)
    write_surface(cell, surface)
    judged = None
    if court is not None:
        judged = judge_allocations(cell, inputs, court, spectra, allocations, progress)
        write_judged(cell, judged)
    return Outcome(measurement, gates, allocations, surface, judged)


def _write_failure(cell: Cell, stage: str, error: Exception) -> bool:
    """Leave word of what went wrong, and say whether that was possible; the cell stays unfinished."""
    failure = {
        "stage": stage,
        "error": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "settings": cell.described_settings(),
    }
    if cell.is_finished():  # by another process
        return False
    try:
        write_atomically(cell.folder / FAILURE_NAME, json.dumps(finite(failure), indent=2, ensure_ascii=False) + "\n")
    except OSError:
        return False  # a full disk: the error itself is what the user must see
    return True
