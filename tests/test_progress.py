"""Progress: what a person at a terminal sees."""

import os
import pty
import re
import subprocess
from pathlib import Path

from conftest import TEXTS, tiny_overrides
from scripts import command

from kvcore.progress import StageProgress


def test_a_terminal_shows_stage_layers_tokens_speed_and_time_left(tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS * 300), encoding="utf-8")
    overrides = [*tiny_overrides(tiny_folder, data, tmp_path / "outputs"), "evaluation.max_tokens=2000"]
    screen, terminal = pty.openpty()
    with subprocess.Popen(
        command("run.py", *overrides),
        cwd=tmp_path,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "140"},
    ) as process:
        os.close(terminal)
        shown = ""
        while chunk := read(screen):
            shown += chunk
    os.close(screen)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert process.returncode == 0, text
    assert "loading tiny ..." in text
    assert re.search(r"capturing 3 layers .* [\d,]+ / [\d,]+ tokens [\d,]+ tokens/s \d+:\d+:\d+", text)
    assert "perplexity of 4 allocations" in text
    assert text.rstrip().endswith("record.json")


def read(screen: int) -> str:
    try:
        return os.read(screen, 65536).decode(errors="replace")
    except OSError:  # how a terminal says that its program has ended
        return ""


def test_seconds_are_kept_by_stage_also_of_stages_that_fail() -> None:
    progress = StageProgress(visible=False)
    for _ in range(2):
        with progress.running("load"):
            pass
    try:
        with progress.running("capture", total=10) as advance:
            advance(5)
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert progress.stage == "capture"
    assert list(progress.seconds) == ["load", "capture"]
    assert all(seconds > 0 for seconds in progress.seconds.values())
