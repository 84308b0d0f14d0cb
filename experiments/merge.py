"""Pool spectra without touching the model: python experiments/merge.py SPECTRUM SPECTRUM ... [--output-root OUTPUTS].

Each SPECTRUM is a folder under outputs/spectra; the pool is written there as well, and its NER printed.
"""

import argparse
from pathlib import Path

from rich.console import Console

from kvcore.command_line import clear_errors


def main() -> None:
    """Write the spectrum of the union of the data and print its path as the last line."""
    parser = argparse.ArgumentParser(description="Pool spectra of one model, measured alike on several datasets.")
    parser.add_argument("spectra", nargs="+", type=Path, help="folders under outputs/spectra")
    parser.add_argument("--output-root", default="outputs", type=Path, help="where the pool is written")
    arguments = parser.parse_args()
    with clear_errors():
        from kvcore.results.printing.cell import print_pool
        from kvcore.spectrum.pooling import pool
        from kvcore.spectrum.storage import load_measurement

        folder = pool(arguments.spectra, arguments.output_root)
        print_pool(Console(), load_measurement(folder).layers)
        print(folder)


if __name__ == "__main__":
    main()
