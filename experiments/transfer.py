"""Draw the transfer matrices of finished cells: python experiments/transfer.py [OUTPUTS].

The cells come from experiments/run.py experiment=transfer, which draws them as well.
"""

import argparse
from pathlib import Path

from rich.console import Console

from kvcore.command_line import clear_errors, collected_cells


def main() -> None:
    """Print delta NLL for every pair of a basis and an evaluation dataset, and draw it."""
    parser = argparse.ArgumentParser(description="Draw what compression costs with the bases of other data.")
    parser.add_argument("outputs", nargs="?", default="outputs/transfer", type=Path, help="an output_root")
    outputs = parser.parse_args().outputs
    with clear_errors():
        from kvcore.cell import writing_to
        from kvcore.results.printing.grid import print_transfers
        from kvcore.results.transfer import draw_transfers, transfers

        cells = collected_cells(outputs)
        print_transfers(Console(), transfers(cells))
        with writing_to(str(outputs)):
            paths = draw_transfers(cells, outputs / "transfer")
        for path in paths:
            print(path)


if __name__ == "__main__":
    main()
