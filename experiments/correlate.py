"""Correlate rank metrics with what compression costs: python experiments/correlate.py [OUTPUTS].

The cells are those with rank_budget=grid, such as `make pocket` leaves in outputs/pocket.
"""

import argparse
from pathlib import Path

from rich.console import Console

from kvcore.command_line import clear_errors, collected_cells


def main() -> None:
    """Print the correlations, write them as CSV and draw NER against each cost."""
    parser = argparse.ArgumentParser(description="Correlate rank metrics of spectra with the cost of compression.")
    parser.add_argument("outputs", nargs="?", default="outputs", type=Path, help="an output_root (default: outputs)")
    outputs = parser.parse_args().outputs
    with clear_errors():
        from kvcore.cell import writing_to
        from kvcore.results.correlation import correlate, draw_correlations, write_correlations
        from kvcore.results.printing.grid import print_correlations

        correlations, points = correlate(collected_cells(outputs))
        print_correlations(Console(), correlations)
        folder = outputs / "correlations"
        with writing_to(str(outputs)):
            paths = [*write_correlations(correlations, points, folder), *draw_correlations(points, folder)]
        for path in paths:
            print(path)


if __name__ == "__main__":
    main()
