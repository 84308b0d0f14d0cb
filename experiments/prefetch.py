"""Download what a grid needs: python experiments/prefetch.py [GROUP=OPTION,...] [SETTING=VALUE] ...

For nodes without network: run it with the overrides of the grid where there is network, with HF_HOME and
KVCORE_CACHE on a disk that the nodes see, and set HF_HUB_OFFLINE=1 on them.
"""

import sys
from pathlib import Path

from kvcore.command_line import FAILED, clear_errors
from kvcore.composition import grid_from


def main() -> None:
    """Fetch the models and datasets of the grid; exit code 1 if one is missing."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    with clear_errors():
        cells = grid_from(sys.argv[1:], Path(__file__).resolve().parents[1] / "conf")
        from kvcore.prefetch import prefetch

        if not prefetch(cells, print):
            raise SystemExit(FAILED)


if __name__ == "__main__":
    main()
