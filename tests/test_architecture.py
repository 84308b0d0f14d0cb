"""The shape of the house: data runs one way, files and functions stay short."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "kvcore"
# Each imports only from those before it, and from itself.
ORDER = [
    "schema", "locking", "cell", "remote", "processes", "model", "data", "capture", "spectrum", "compression",
    "evaluation", "results", "progress", "preparation", "stages", "pipeline", "grid", "prefetch", "composition",
    "command_line",
]  # fmt: skip
SOURCES = sorted(path for folder in ("kvcore", "experiments") for path in (REPOSITORY / folder).rglob("*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_its_place_in_the_order() -> None:
    assert {part_of(path) for path in PACKAGE.rglob("*.py")} == {*ORDER, "__init__"}


@pytest.mark.parametrize("part", ORDER)
def test_imports_run_one_way(part: str) -> None:
    allowed = ORDER[: ORDER.index(part) + 1]
    for path in PACKAGE.rglob("*.py"):
        if part_of(path) == part:
            names = [name.split(".")[1] for name in imported_modules(path) if name.startswith("kvcore.")]
            assert set(names) <= set(allowed), f"{path} imports {set(names) - set(allowed)}"


def test_only_the_command_line_knows_the_configuration_library() -> None:
    for path in PACKAGE.rglob("*.py"):
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert part_of(path) in ("composition", "command_line") or not roots & {"hydra", "omegaconf"}, path


def test_nothing_executable_is_read_from_disk() -> None:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not {"pickle", "dill", "joblib", "marshal", "shelve"} & set(imported_modules(path)), path
        assert "torch.load(" not in text, path
        assert not re.search("trust_remote_code.{1,4}True", text), path


def test_files_and_functions_are_short() -> None:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.body[0].lineno <= 60, f"{path}: {node.name}"


def test_no_drawers() -> None:
    for path in SOURCES:
        assert not {"utils", "util", "helpers", "helper", "common", "misc"} & {*path.parts, path.stem}, path


def test_tests_mirror_the_package() -> None:
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        relative = path.relative_to(REPOSITORY / "tests")
        if len(relative.parts) > 1 and relative.parts[0] != "experiments":
            assert (PACKAGE / relative.parts[0]).is_dir(), path
