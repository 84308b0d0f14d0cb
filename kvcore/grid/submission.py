"""Submit and leave: cells of a frozen grid as Slurm job arrays, which nobody waits for.

Beside the grid's file `<grid>.json` lies the folder `<grid>/slurm/`: `submitted.json`, the job ids; `cells.sh`, what a
task runs; `<job>_<task>.log`, what it printed.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from kvcore.cell import write_atomically
from kvcore.schema import SlurmSettings, UserError, first_line

SUBMITTED_NAME = "submitted.json"
_TASKS = 1000  # of an array: Slurm numbers them up to MaxArraySize - 1, by default 1000
_SECONDS_FOR_THE_QUEUE = 20

# The cell gets SIGINT, as if interrupted at a keyboard. Shells take this signal from what they start in the background,
# unless jobs have process groups of their own (set -m).
_SCRIPT = """\
#!/bin/bash
# One cell of a frozen grid; $1 + the number of the array's task is the cell's.
{setup}
set -m
{command} cell=$(($1 + SLURM_ARRAY_TASK_ID)) &
cell=$!
resume_later() {{
    if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {restarts} ]; then
        echo "The time is nearly up, and this task has been queued again {restarts} times: it is left to its end."
        return
    fi
    kill -INT "$cell"
    wait "$cell" && exit
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
}}
trap resume_later USR2
until wait "$cell"; do # a signal ends the waiting, not the cell
    code=$?
    kill -0 "$cell" 2>/dev/null || exit "$code"
done
"""


@dataclass(frozen=True)
class Submission:
    """Cells that were submitted together.

    Attributes:
        job: Slurm's id of the array.
        first: The number of the cell that its task 0 is.
        cells: Numbers of its cells.
    """

    job: str
    first: int
    cells: list[int]


def submit(grid: Path, cells: Sequence[int], command: Sequence[str], slurm: SlurmSettings) -> Iterator[Submission]:
    """Submit cells as job arrays, one for each thousand, and yield what was submitted, once it is on record.

    Args:
        grid: File of the frozen grid.
        cells: Numbers of those to be run.
        command: Runs a cell, when `cell=N` is added to it; in the folder in which this is called.
        slurm: What Slurm is asked for.

    Raises:
        UserError: There is no Slurm, or it refuses: what it says.
    """
    folder = slurm_folder(grid)
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "cells.sh"
    setup = "\n".join(slurm.setup or ())
    text = _SCRIPT.format(setup=setup, command=shlex.join(command), restarts=slurm.max_num_timeout)
    write_atomically(script, text)
    for block, numbers in groupby(sorted(cells), key=lambda number: number // _TASKS):
        first, members = block * _TASKS, list(numbers)
        tasks = ",".join(str(number - first) for number in members)
        array = f"--array={tasks}%{slurm.array_parallelism}"
        job = _sbatch([array, *_options(slurm, folder), str(script), str(first)])
        submission = Submission(job, first, members)
        known = [asdict(one) for one in submissions(grid)]
        write_atomically(folder / SUBMITTED_NAME, json.dumps([*known, asdict(submission)], indent=2) + "\n")
        yield submission


def submissions(grid: Path) -> list[Submission]:
    """Return what was submitted of a grid, oldest first.

    Raises:
        UserError: The file that says so is damaged.
    """
    path = slurm_folder(grid) / SUBMITTED_NAME
    try:
        return [Submission(**one) for one in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []
    except (OSError, ValueError, TypeError) as error:
        said = "remove it when no job of this grid is in the queue"
        raise UserError(f"{path} cannot be read ({first_line(error)}); {said}") from error


def queued(grid: Path) -> Mapping[int, str]:
    """Return what Slurm's queue says of cells of a grid: by number, such as `pending: Resources`.

    Empty where there is no queue or it does not answer: no result depends on it.
    """
    firsts = {submission.job: submission.first for submission in submissions(grid)}
    if not firsts or shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--me", "--array", "--noheader", "--format=%F|%K|%T|%r"]
    try:
        asked = subprocess.run(  # noqa: S603 - a fixed command
            command, capture_output=True, text=True, timeout=_SECONDS_FOR_THE_QUEUE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    tasks = (line.split("|", 3) for line in asked.stdout.splitlines())
    return {
        firsts[job] + int(task): state.lower() if reason == "None" else f"{state.lower()}: {reason}"
        for job, task, state, reason in tasks
        if job in firsts and task.isdigit()
    }


def slurm_folder(grid: Path) -> Path:
    """Return where the jobs of a grid are kept."""
    return grid.with_suffix("") / "slurm"


def _options(slurm: SlurmSettings, folder: Path) -> list[str]:
    """Return the options of sbatch."""
    log = str(folder.resolve()).replace("%", "%%") + "/%A_%a.log"
    named = {
        "job-name": slurm.name,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "exclude": slurm.exclude,
        "comment": slurm.comment,
        "gpus-per-node": slurm.gpus_per_node,
        "cpus-per-task": slurm.cpus_per_task,
        "mem": slurm.mem_gb and f"{slurm.mem_gb}G",
        "time": slurm.timeout_min,
        "signal": f"B:USR2@{slurm.signal_delay_s}",
        "output": log,
        "open-mode": "append",
        "requeue": True,
        **slurm.additional_parameters,
    }
    given = {name: value for name, value in named.items() if value is not None and value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def _sbatch(arguments: Sequence[str]) -> str:
    """Submit and return the job's id."""
    try:
        command = ["sbatch", "--parsable", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - no shell
    except FileNotFoundError as error:
        raise UserError("hydra/launcher = 'slurm': there is no Slurm here (no command sbatch)") from error
    except subprocess.CalledProcessError as error:
        raise UserError(error.stderr.strip() or f"sbatch ended with exit code {error.returncode}") from error
    return done.stdout.strip().partition(";")[0]  # on several clusters: id;cluster
