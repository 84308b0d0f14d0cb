"""Collect all finished cells: python experiments/collect.py [OUTPUTS] [strict=true] [figures=false].

Prints the table of NER, the values published for the same data and models, what the cells say of the paper's claims
and which cells are missing and why, and writes tables and figures to OUTPUTS/report. It works at any time, on what is
there. With strict=true, exit code 1 if a record cannot be used.
"""

import argparse
from pathlib import Path

from rich.console import Console

from kvcore.command_line import FAILED, clear_errors
from kvcore.schema import SettingError, UserError

SWITCHES = {"strict": "false", "figures": "true"}


def main() -> None:
    """Read every record under a folder; print and write what they come to."""
    parser = argparse.ArgumentParser(description="Collect all finished cells: table, findings, figures.")
    words = "[OUTPUTS] [strict=true] [figures=false]"
    parser.add_argument("words", nargs="*", metavar=words, help="OUTPUTS: an output_root (default: outputs)")
    with clear_errors():
        outputs, switches = arguments_from(parser.parse_args().words)
        from kvcore.grid.printing import print_states
        from kvcore.grid.states import STATES, states
        from kvcore.results.collection import Problem, collect
        from kvcore.results.printing.grid import print_publication
        from kvcore.results.printing.lines import print_lines
        from kvcore.results.publication import make_publication, write_publication

        publication = make_publication(collect(outputs))
        errors, console = Console(stderr=True), Console()
        print_lines(errors, [*publication.problems, *publication.untrusted])
        print_publication(console, publication)
        unreadable: list[Problem] = []
        found = states(outputs, unreadable=unreadable.append)
        print_states(console, found, [state for state in STATES if state != "done"])
        paths, missing = write_publication(publication, outputs, with_figures=switches["figures"] == "true")
        print_lines(errors, [*unreadable, *missing])
        print_lines(console, paths)
        if switches["strict"] == "true" and (publication.problems or unreadable or missing):
            raise SystemExit(FAILED)


def arguments_from(words: list[str]) -> tuple[Path, dict[str, str]]:
    """Return the output_root and the switches.

    Raises:
        UserError: There are other words.
    """
    switches, folders = dict(SWITCHES), []
    for word in words:
        name, _, value = word.partition("=")
        if name not in SWITCHES:
            folders.append(word)
        elif value not in ("true", "false"):
            raise SettingError(name, value, "one of true, false")
        else:
            switches[name] = value
    if len(folders) > 1:
        raise UserError(f"one folder of outputs is collected, and these are {len(folders)}: {', '.join(folders)}")
    return Path(*folders or ["outputs"]), switches


if __name__ == "__main__":
    main()
