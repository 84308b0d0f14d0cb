"""Collect all finished cells: python experiments/collect.py [OUTPUTS] [strict=true].

Prints the table of NER, the values published for the same data and models, and what the cells say of the paper's claims,
and writes them with figures to OUTPUTS/report. With strict=true, exit code 1 if a record cannot be used.
"""

import argparse
from pathlib import Path

from rich.console import Console

from kvcore.command_line import FAILED, clear_errors
from kvcore.schema import SettingError, UserError


def main() -> None:
    """Read every record under a folder; print and write what they come to."""
    parser = argparse.ArgumentParser(description="Collect all finished cells: table, findings, figures.")
    parser.add_argument("words", nargs="*", metavar="OUTPUTS | strict=true", help="an output_root (default: outputs)")
    with clear_errors():
        outputs, strict = arguments_from(parser.parse_args().words)
        from kvcore.results.collection import collect
        from kvcore.results.printing.cell import print_lines
        from kvcore.results.printing.grid import print_publication
        from kvcore.results.publication import make_publication, write_publication

        publication = make_publication(collect(outputs))
        errors, console = Console(stderr=True), Console()
        print_lines(errors, [*publication.problems, *publication.untrusted])
        print_publication(console, publication)
        paths, missing = write_publication(publication, outputs)
        print_lines(errors, missing)
        print_lines(console, paths)
        if strict and (publication.problems or missing):
            raise SystemExit(FAILED)


def arguments_from(words: list[str]) -> tuple[Path, bool]:
    """Return the output_root and whether everything must be usable.

    Raises:
        UserError: There are other words.
    """
    settings = [word for word in words if word.startswith("strict=")]
    folders = [word for word in words if word not in settings] or ["outputs"]
    for setting in settings:
        if setting not in ("strict=true", "strict=false"):
            raise SettingError("strict", setting.partition("=")[2], "one of true, false")
    if len(folders) > 1:
        raise UserError(f"one folder of outputs is collected, and these are {len(folders)}: {', '.join(folders)}")
    return Path(folders[0]), settings[-1:] == ["strict=true"]


if __name__ == "__main__":
    main()
