"""What the README shows is what happens."""

import contextlib
import io
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY

from kvcore.composition import grid_from

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def printed_by(code: str, names: dict[str, object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, names)  # noqa: S102 - the README's own code
    return out.getvalue()


def test_measure_from_a_notebook(tiny_folder: Path) -> None:
    code = blocks("python")[0].replace("/models/my-llama", str(tiny_folder))
    names: dict[str, object] = {}
    assert printed_by(code, names).split()[:3] == ["layer", "kind", "ner"]
    layers = names["measured"].layers
    assert isinstance(layers, pd.DataFrame)
    assert set(layers["tokens"]) == {len("A text.") + len("Another text.")}


def test_streaming_svd_from_a_notebook() -> None:
    assert printed_by(blocks("python")[1], {}).startswith("150 tensor([")


def test_notebook_examples_have_five_lines() -> None:
    for code in blocks("python"):
        assert len([line for line in code.splitlines() if line]) <= 5


COMMANDS = [line for block in blocks("console") for line in block.splitlines() if "experiments/" in line]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command: str) -> None:
    program, script, *overrides = command.split()
    assert program == ".venv/bin/python"
    assert (REPOSITORY / script).is_file()
    if script == "experiments/run.py":
        assert grid_from(overrides, REPOSITORY / "conf")


def test_columns_of_the_tables_are_those_of_the_code() -> None:
    assert "`layer, kind, kv_dim, tokens, effective_rank, ner, ner_energy, stable_rank" in README
    for target in re.findall(r"`make (\w+)`", README):
        assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)


def test_links_within_the_repository_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (REPOSITORY / target).exists(), target


@pytest.mark.parametrize(("code", "scripts"), [(0, 3), (1, 3), (2, 1), (130, 1)])
def test_make_pocket_shows_the_cells_that_are_done(code: int, scripts: int, tmp_path: Path) -> None:
    """A cell that fails (exit code 1) is no reason to go without table and page; a mistake is."""
    called = tmp_path / "called"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$1" >> {called}\ncase "$1" in *run.py) exit {code};; esac\n')
    python.chmod(0o755)
    installed = tmp_path / "installed"
    installed.touch()
    make = ["make", "--old-file", str(installed), "pocket", f"BIN={tmp_path}", f"INSTALLED={installed}"]
    done = subprocess.run(make, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert bool(done.returncode) == bool(code)
    assert len(called.read_text().splitlines()) == scripts
