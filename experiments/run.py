"""Run one cell: python experiments/run.py [GROUP=OPTION] [SETTING=VALUE] ...

With -m, every combination of choices that are separated by commas.
"""

import sys
from functools import cache
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig
from rich.console import Console

from kvcore.command_line import admit_unknown_settings, clear_errors, quiet_libraries, settings_from

if TYPE_CHECKING:
    from kvcore.preparation import ModelLoader
    from kvcore.processes import Processes


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(config: DictConfig) -> None:
    """Check the settings, run the cell and print the path of its record as the last line."""
    with clear_errors():
        settings = settings_from(config)
        quiet_libraries()
        # Imported only now: torch takes seconds, which a mistake in the settings need not wait for.
        from kvcore.pipeline import run_cell

        console = Console() if processes().is_first else None
        path = run_cell(settings, console=console, loader=model_loader(), processes=processes())
        if processes().is_first:
            print(path)


@cache
def processes() -> "Processes":
    """Return those that torchrun has started, joined when the first cell needs them."""
    from kvcore.processes import join

    return join()


@cache
def model_loader() -> "ModelLoader":
    """Return the one that keeps a model from cell to cell of a grid."""
    from kvcore.preparation import ModelLoader

    return ModelLoader()


if __name__ == "__main__":
    sys.argv[1:] = admit_unknown_settings(sys.argv[1:])
    with clear_errors():
        main()
