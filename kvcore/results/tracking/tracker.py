"""Mirroring cells in a tracker: after the fact, within bounds, and never at the expense of a cell."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kvcore.schema import UserError, WandbTracker, first_line

_START_SECONDS = 60.0  # imports from a slow shared disk
_CELL_SECONDS = 10.0
_SECRETS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")

Say = Callable[[str], None]


class _Written(NamedTuple):
    """Offline runs, and how long writing them has taken, the start of wandb included."""

    runs: list[Path]
    seconds: float


def mirror(cells: Sequence[Path], tracker: WandbTracker, output_root: Path, say: Say) -> bool:
    """Mirror finished and failed cells as they are on disk; a fault is said, and raises nothing.

    Each becomes an offline run. With `mode=online` it is then sent, for at most `timeout_seconds` each; what could not
    be sent stays, to be sent with `wandb sync`. After the first such fault nothing more is tried.

    Args:
        cells: Folders of cells.
        tracker: Where and how; with `mode=disabled` nothing happens.
        output_root: Folder with `runs/`.
        say: Told where each run is, or what went wrong, in one line.

    Returns:
        Whether all of them are where they should be.
    """
    if tracker.mode == "disabled" or not cells:
        return True
    folder = Path(tracker.folder).expanduser() if tracker.folder else output_root / "tracking"
    try:
        written = _write(cells, tracker, folder.absolute(), say)
        sent = tracker.mode != "online" or _send(written, tracker, say)
        return sent and len(written.runs) == len(cells)
    except Exception as error:  # whatever it is: a cell never fails because tracking failed
        say(f"tracker: not mirrored: {first_line(error)}")
        return False


def _write(cells: Sequence[Path], tracker: WandbTracker, folder: Path, say: Say) -> _Written:
    folder.mkdir(parents=True, exist_ok=True)
    request = {
        "cells": [str(cell.absolute()) for cell in cells],
        "tracker": tracker.model_dump(mode="json"),
        "folder": str(folder),
        "started": time.time(),
    }
    limit = _START_SECONDS + _CELL_SECONDS * len(cells)
    environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    module = ["kvcore.results.tracking.offline_runs"]
    with tempfile.TemporaryDirectory() as logs:
        try:
            environment["WANDB_CACHE_DIR"] = logs
            done = _call(module, environment, folder, seconds=limit, text=json.dumps(request))
        except subprocess.TimeoutExpired:
            raise UserError(f"wandb did not end within {limit:g} seconds") from None
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for answer in answers:
        say(f"tracker: {answer['run'] if 'run' in answer else answer['cell'] + ' is not mirrored: ' + answer['fault']}")
    if done.returncode:
        raise UserError((done.stderr.strip() or f"wandb ended with code {done.returncode}").splitlines()[-1])
    written = [answer for answer in answers if "run" in answer]
    return _Written([Path(answer["run"]) for answer in written], written[0]["seconds"] if written else 0.0)


def _send(written: _Written, tracker: WandbTracker, say: Say) -> bool:
    """Send offline runs, until one cannot be sent."""
    for place, run in enumerate(written.runs):
        fault = _fault_of_sending(run, tracker.timeout_seconds, written.seconds)
        if fault is not None:
            left = len(written.runs) - place
            say(f"tracker: {left} run{'s' * (left > 1)} not sent ({fault}); later: wandb sync {run.parent}")
            return False
    return True


def _fault_of_sending(run: Path, seconds: float, start_seconds: float) -> str | None:
    """Send an offline run and return what went wrong, if anything did.

    Args:
        run: Its folder.
        seconds: Longest wait for the server.
        start_seconds: How long wandb itself takes to start, at most.
    """
    environment = os.environ | {"WANDB_MODE": "online"}
    try:
        done = _call(["wandb", "sync", str(run)], environment, run.parents[1], seconds=seconds + start_seconds)
    except subprocess.TimeoutExpired:
        return f"no answer within tracker.timeout_seconds = {seconds:g}"
    if any(run.glob("*.wandb.synced")):  # the exit code is 0 even where the key is refused
        return None
    faults = re.findall(r"(?:ERROR|Error:) (?!Find detailed)(.*)", done.stdout + done.stderr)
    return faults[-1] if faults else "wandb sync did not finish"


def _call(
    module: list[str], environment: Mapping[str, str], folder: Path, *, seconds: float, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a module in a Python of its own, quietly, in a folder that may get its log files."""
    command = [sys.executable, "-P", "-m", *module]
    quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "false", "NO_COLOR": "1"}
    return subprocess.run(  # noqa: S603
        command, env={**environment, **quiet}, cwd=folder, input=text, capture_output=True, text=True, timeout=seconds
    )
