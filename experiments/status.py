"""Say how far each cell is, and why: python experiments/status.py [OUTPUTS] [--all]."""

import argparse
from pathlib import Path

from rich.console import Console

from kvcore.command_line import clear_errors
from kvcore.schema import SettingError


def main() -> None:
    """Print the state of every cell of every grid under a folder, from what cells write and from Slurm's queue."""
    parser = argparse.ArgumentParser(description="Say which cells are done, running, failed, interrupted or pending.")
    parser.add_argument("outputs", nargs="?", default="outputs", type=Path, help="an output_root (default: outputs)")
    parser.add_argument("--all", action="store_true", help="list the cells that are done, too")
    arguments = parser.parse_args()
    with clear_errors():
        from kvcore.grid.printing import print_states
        from kvcore.grid.states import STATES, states
        from kvcore.grid.submission import queued
        from kvcore.results.collection import Problem
        from kvcore.results.printing.lines import print_lines

        unreadable: list[Problem] = []
        found = states(arguments.outputs, queued, unreadable.append)
        print_lines(Console(stderr=True), unreadable)
        if found.empty:
            raise SettingError("outputs", str(arguments.outputs), "no grid and no cell under it")
        print_states(Console(), found, STATES if arguments.all else STATES[1:])


if __name__ == "__main__":
    main()
