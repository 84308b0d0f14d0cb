"""Submit a grid to Slurm and leave: python experiments/submit.py [GROUP=OPTION,...] [SETTING=VALUE] ...

Takes the overrides of experiments/run.py, and those of its launcher, such as hydra.launcher.partition=gpu (all of them:
conf/hydra/launcher/slurm.yaml). experiments/status.py says how far it is, experiments/collect.py reads what is there.
"""

import sys
from pathlib import Path

from rich.console import Console

from kvcore.command_line import clear_errors
from kvcore.composition import grid_from, job_of, launch_of, slurm_from

CONFIGURATION = Path(__file__).resolve().parents[1] / "conf"
RUN = Path(__file__).resolve().with_name("run.py")


def main() -> None:
    """Freeze a grid, submit its cells that are missing and not queued yet, and print the ids of the jobs."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    if not any(argument.startswith("hydra/launcher=") for argument in arguments):
        arguments.insert(0, "hydra/launcher=slurm")
    with clear_errors():
        slurm, launch = slurm_from(arguments, CONFIGURATION), launch_of(arguments, CONFIGURATION)
        with Console(stderr=True).status("composing the cells of the grid"):
            cells = grid_from(arguments, CONFIGURATION)
        from kvcore.grid.frozen import freeze
        from kvcore.grid.launching import launched
        from kvcore.grid.states import forget_failure
        from kvcore.grid.submission import queued, slurm_folder, submit

        grid = launched(freeze(cells), launch.rerun, forget=False)
        waiting = queued(grid.path)
        missing = [number for number in grid.to_run if number not in waiting]
        print(f"{grid.name}: {len(grid.cells)} cells, {len(waiting)} queued before, {len(missing)} to be submitted")
        command = [sys.executable, str(RUN), *job_of(grid.path, arguments)]
        for submission in submit(grid.path, missing, command, slurm):
            for number in submission.cells:
                forget_failure(grid.output_root, grid.cells[number].key)
            print(f"job {submission.job}: {len(submission.cells)} cells; logs: {slurm_folder(grid.path)}", flush=True)


if __name__ == "__main__":
    main()
