"""Compare rank budgets at equal shares of the cache: python experiments/compare.py [OUTPUTS].

The cells to compare come from, say: experiments/run.py -m rank_budget=uniform,waterfill,sensitivity
"""

import argparse
from pathlib import Path

from rich.console import Console

from kvcore.command_line import clear_errors, collected_cells


def main() -> None:
    """Print delta NLL of every strategy and budget, also as a share of that of the uniform budget."""
    parser = argparse.ArgumentParser(description="Compare the rank budgets of finished cells, at equal budgets.")
    parser.add_argument("outputs", nargs="?", default="outputs", type=Path, help="an output_root (default: outputs)")
    outputs = parser.parse_args().outputs
    with clear_errors():
        from kvcore.cell import writing_to
        from kvcore.results.comparison import compare_budgets
        from kvcore.results.printing.grid import print_comparison

        comparison = compare_budgets(collected_cells(outputs))
        print_comparison(Console(), comparison)
        path = outputs / "comparison.csv"
        with writing_to(str(outputs)):
            comparison.to_csv(path, index=False)
        print(path)


if __name__ == "__main__":
    main()
