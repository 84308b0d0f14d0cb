"""Make workspaces that compare the cells of a W&B project: python experiments/dashboard.py [tracker.NAME=VALUE] ...

Needs the extra: pip install 'kvcore[dashboard]'. Takes tracker.project and tracker.entity, as experiments/run.py does.
"""

import sys
from pathlib import Path

from kvcore.command_line import clear_errors
from kvcore.composition import composed_settings


def main() -> None:
    """Save the views and print their addresses."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    with clear_errors():
        from kvcore.results.tracking.workspace import save_workspaces
        from kvcore.schema import SettingError, WandbTracker

        tracker = composed_settings(
            ["tracker=wandb", *sys.argv[1:]], Path(__file__).resolve().parents[1] / "conf"
        ).tracker
        if not isinstance(tracker, WandbTracker):
            raise SettingError("tracker", tracker.name, "wandb is the only one with workspaces")
        for address in save_workspaces(tracker):
            print(address)


if __name__ == "__main__":
    main()
