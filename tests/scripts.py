"""The scripts of experiments/, called as a user calls them."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from conftest import REPOSITORY

RUN = str(REPOSITORY / "experiments" / "run.py")


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "experiments" / script), *arguments]


def call(
    script: str, *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    line = command(script, *arguments)
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=170)
