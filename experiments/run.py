"""Run one cell: python experiments/run.py [GROUP=OPTION] [SETTING=VALUE] ...

With -m, or with an experiment that sweeps, a grid: every combination of choices that are separated by commas.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from kvcore.command_line import FAILED, clear_errors, insist_on_interrupts, lost_jobs_told, prepare_libraries
from kvcore.composition import (
    admit_unknown_settings,
    grid_from,
    jobs_of,
    launch_from,
    launch_of,
    settings_from,
    slurm_from,
    sweeps,
)

CONFIGURATION = Path(__file__).resolve().parents[1] / "conf"


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(config: DictConfig) -> None:
    """Check the settings, run the cell and print the path of its record as the last line."""
    with clear_errors():
        launch = launch_from(config)
        settings = None
        if not launch.frozen:
            launch.require_no_grid()
            settings = settings_from(config)
        prepare_libraries()
        # Imported only now: torch takes seconds, which a mistake in the settings need not wait for.
        from kvcore.grid.running import model_loader, processes, run_frozen_cell
        from kvcore.pipeline import run_cell

        is_first = processes().is_first
        console = Console() if is_first else None
        if settings:
            path = run_cell(settings, console=console, loader=model_loader(), processes=processes())
            if is_first:
                print(path)
        else:
            done = run_frozen_cell(launch, console=console, loader=model_loader(), processes=processes())
            if not done and HydraConfig.get().mode == RunMode.RUN:  # else the other cells still run
                raise SystemExit(FAILED)


def run_grid(arguments: Sequence[str]) -> None:
    """Freeze a grid, run its cells that are missing and say how it ended; exit code 1 unless all are done."""
    from kvcore.grid.frozen import freeze, read_frozen
    from kvcore.grid.launching import launched
    from kvcore.grid.printing import print_states
    from kvcore.grid.running import processes
    from kvcore.grid.states import states_of

    if "hydra/launcher=slurm" in arguments:
        slurm_from(arguments, CONFIGURATION)  # a mistake shows before the cells are launched, not within submitit
    with Console(stderr=True).status("composing the cells of the grid"):  # a seventh of a second each
        cells = grid_from(arguments, CONFIGURATION)
    grid = freeze(cells)
    if processes().is_first:
        launched(grid, launch_of(arguments, CONFIGURATION).rerun)
    processes().wait()  # and no sooner: a launch forgets the failures by which another would choose
    grid = read_frozen(grid.path)
    if grid.to_run:
        sys.argv[1:] = jobs_of(grid.path, grid.to_run, grid.output_root, arguments)
        with lost_jobs_told():
            main()
    if not processes().is_first:
        return
    states = states_of(grid)
    print_states(Console(), states, ("failed", "interrupted", "pending"))
    if not states["state"].isin(["done", "running"]).all():
        raise SystemExit(FAILED)


if __name__ == "__main__":
    given = sys.argv[1:]
    with clear_errors():
        insist_on_interrupts()
        if sweeps(given, CONFIGURATION):
            run_grid(given)
        else:
            sys.argv[1:] = admit_unknown_settings(given)
            main()
