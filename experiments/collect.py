"""Print the table of all finished cells: python experiments/collect.py [OUTPUTS]."""

import argparse
from pathlib import Path

from rich.console import Console

from kvcore.command_line import clear_errors


def main() -> None:
    """Read every record under a folder and print NER by dataset, language and model."""
    parser = argparse.ArgumentParser(description="Print NER of all finished cells, in the published layout.")
    parser.add_argument("outputs", nargs="?", default="outputs", type=Path, help="an output_root (default: outputs)")
    outputs = parser.parse_args().outputs
    with clear_errors():
        from kvcore.results.collection import collect, ner_table
        from kvcore.results.printing.grid import print_ner_table

        print_ner_table(Console(), ner_table(collect(outputs)))


if __name__ == "__main__":
    main()
