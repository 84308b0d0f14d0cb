"""How a command ends: its exit code, and one clear line for a user's mistake instead of a traceback."""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from kvcore.composition import describe_configuration_error, describe_launcher_fault
from kvcore.schema import BusyError, GateError, UserError, first_line

if TYPE_CHECKING:
    import pandas as pd

FAILED = 1
USER_ERROR = 2
INTERRUPTED = 130
_SECONDS_BETWEEN_INTERRUPTS = 1.0


@contextmanager
def clear_errors() -> Iterator[None]:
    """End the process with a clear line, not a traceback, where the cause is known.

    Exit codes: 1 where a gate failed or another process is at the cell, 2 for a mistake in the settings or in what
    they point at, 130 when interrupted. Everything else is a defect and keeps its traceback. To be used around a
    Hydra entry point, for errors of composing the configuration, and inside it, where Hydra would add its own lines.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits by itself, always with code 1
    try:
        yield
    except UserError as error:
        _exit(USER_ERROR, str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _exit(USER_ERROR, describe_configuration_error(error))
    except ValueError as error:
        if "Config group override" not in str(error):  # how Hydra refuses GROUP=null
            raise
        _exit(USER_ERROR, "every group needs one of its options: see --help")
    except GateError as error:
        _exit(FAILED, f"{error}. These numbers cannot be trusted; gates=warn records them all the same.")
    except BusyError as error:
        _exit(FAILED, f"{error}; run the same command again when that has ended")
    except RuntimeError as error:
        if (fault := describe_launcher_fault(error)) is None:
            raise
        _exit(USER_ERROR, fault)
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)  # it has arrived, see `insist_on_interrupts`
        _exit(INTERRUPTED, "interrupted; run the same command again to complete the cell")


def insist_on_interrupts() -> None:
    """Make Ctrl-C end the program though the first KeyboardInterrupt gets lost: another follows every second.

    It was seen to get lost: it may come while a finaliser or C code runs, which drop what is raised in them. Python
    reports what a finaliser drops; not an interrupt any more. Where SIGINT is ignored, as of what a shell starts in the
    background, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return

    def interrupt(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, _SECONDS_BETWEEN_INTERRUPTS)
        raise KeyboardInterrupt

    report = sys.unraisablehook

    def report_others(dropped: "sys.UnraisableHookArgs") -> None:
        if dropped.exc_type is not KeyboardInterrupt:
            report(dropped)

    sys.unraisablehook = report_others
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGALRM, interrupt)


@contextmanager
def lost_jobs_told() -> Iterator[None]:
    """Go on where a launcher has lost a job, such as one that was killed: how far its cell came is on disk."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ not in ("UncompletedJobError", "TerminatedWorkerError"):
            raise
        print(f"a job was lost: {first_line(error)}", file=sys.stderr)  # noqa: T201 - all that is known of it


def prepare_libraries() -> None:
    """Silence progress bars and log lines of libraries, and let the program end without a search for garbage.

    kvcore shows its own progress, and the libraries' errors are raised as well. When Python ends, it looks for cycles
    among all objects; the libraries make so many that this takes longer than a second.
    """
    atexit.register(gc.freeze)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def collected_cells(outputs: Path) -> "pd.DataFrame":
    """Collect the cells under a folder, and say on standard error which records were not used.

    Raises:
        SettingError: There is no record.
    """
    from kvcore.results.collection import collect
    from kvcore.results.printing.lines import print_lines

    cells, problems = collect(outputs)
    print_lines(Console(stderr=True), problems)
    return cells


def show_transfers(outputs: Path) -> None:
    """Print the transfer matrices of the cells under a folder, and draw them.

    Raises:
        UserError: There is none, or the folder cannot be written to.
    """
    from kvcore.cell import writing_to
    from kvcore.results.printing.grid import print_transfers
    from kvcore.results.transfer import draw_transfers, transfers

    matrices = list(transfers(collected_cells(outputs)))
    print_transfers(Console(), matrices)
    with writing_to(str(outputs)):
        paths = draw_transfers(matrices, outputs / "transfer")
    for path in paths:
        print(path)  # noqa: T201 - what the command was run for


class DrawTransfers(Callback):
    """Draws the transfer matrices when all their cells are done; named in conf/experiment/transfer.yaml."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401 - Hydra's own signature
        """Print and draw what is there."""
        try:
            show_transfers(Path(str(config.output_root)).expanduser())
        except UserError as error:  # such as: no cell is finished; how the grid ended is still to be said
            print(error, file=sys.stderr)  # noqa: T201


def _exit(code: int, message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201 - the last word of a command
    raise SystemExit(code)
