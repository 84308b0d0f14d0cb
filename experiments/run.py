"""Run one cell: python experiments/run.py [GROUP=OPTION] [SETTING=VALUE] ..."""

import datasets
import hydra
import transformers
from omegaconf import DictConfig
from rich.console import Console

from kvcore.command_line import clear_errors, settings_from
from kvcore.pipeline import run_cell


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(config: DictConfig) -> None:
    """Check the settings, run the cell and print the path of its record as the last line."""
    with clear_errors():
        print(run_cell(settings_from(config), console=Console()))


if __name__ == "__main__":
    # kvcore shows its own progress.
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors are raised as well, and said then
    transformers.utils.logging.disable_progress_bar()
    with clear_errors():
        main()
