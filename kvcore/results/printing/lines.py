"""Lines that hold paths."""

from collections.abc import Iterable

from rich.console import Console


def print_lines(console: Console, lines: Iterable[object]) -> None:
    """Print lines that hold paths, which are for copying: never wrapped."""
    for line in lines:
        console.print(str(line), soft_wrap=True, highlight=False, markup=False)
