"""Draw the transfer matrices of finished cells: python experiments/transfer.py [OUTPUTS].

The cells come from experiments/run.py experiment=transfer, which draws them as well.
"""

import argparse
from pathlib import Path

from kvcore.command_line import clear_errors, show_transfers


def main() -> None:
    """Print delta NLL for every pair of a basis and an evaluation dataset, and draw it."""
    parser = argparse.ArgumentParser(description="Draw what compression costs with the bases of other data.")
    parser.add_argument("outputs", nargs="?", default="outputs/transfer", type=Path, help="an output_root")
    outputs = parser.parse_args().outputs
    with clear_errors():
        show_transfers(outputs)


if __name__ == "__main__":
    main()
