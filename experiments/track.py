"""Mirror cells in Weights & Biases from what is on disk: python experiments/track.py [OUTPUTS] [tracker.NAME=VALUE] ...

Takes all finished and failed cells; a cell that was mirrored before replaces its run.
"""

import argparse
from pathlib import Path

from kvcore.command_line import FAILED, clear_errors
from kvcore.composition import composed_settings


def main() -> None:
    """Mirror every cell under a folder; exit code 1 if one is not where it should be."""
    parser = argparse.ArgumentParser(description="Mirror finished and failed cells in Weights & Biases.")
    parser.add_argument("outputs", nargs="?", default="outputs", help="an output_root (default: outputs)")
    parser.add_argument("settings", nargs="*", help="settings of the tracker, such as tracker.mode=online")
    arguments = parser.parse_args()
    outputs, overrides = arguments.outputs, arguments.settings
    if outputs.startswith("tracker."):
        outputs, overrides = "outputs", [outputs, *overrides]
    with clear_errors():
        from kvcore.results.tracking.content import mirrored_cells
        from kvcore.results.tracking.tracker import mirror
        from kvcore.schema import SettingError, WandbTracker

        conf = Path(__file__).resolve().parents[1] / "conf"
        tracker = composed_settings(["tracker=wandb", *overrides], conf).tracker
        cells = mirrored_cells(Path(outputs))
        if not isinstance(tracker, WandbTracker):
            raise SettingError("tracker", tracker.name, "wandb is the only one")
        if not cells:
            raise SettingError("output_root", outputs, "no finished or failed cell under it")
        if not mirror(cells, tracker, Path(outputs), print):
            raise SystemExit(FAILED)


if __name__ == "__main__":
    main()
