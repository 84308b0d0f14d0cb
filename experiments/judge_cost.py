"""Say what judging a grid would cost, and ask nothing: python experiments/judge_cost.py [GROUP=OPTION,...] ...

Takes the overrides of the grid, as experiments/run.py does.
"""

import sys
from pathlib import Path

from kvcore.command_line import clear_errors, prepare_libraries
from kvcore.composition import grid_from


def main() -> None:
    """Print requests and tokens of every cell that is not finished, and of all together."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    with clear_errors():
        cells = grid_from(sys.argv[1:], Path(__file__).resolve().parents[1] / "conf")
        prepare_libraries()
        from kvcore.evaluation.judging.cost import NO_COST
        from kvcore.progress import StageProgress
        from kvcore.stages.judging import estimate_cost

        total = NO_COST
        for settings in cells:
            cost = estimate_cost(settings, StageProgress(visible=False))
            data = f"{settings.dataset.name}, {settings.language.name}"
            print(f"{settings.model.name}, {data}, {settings.rank_budget.name}: {cost}")
            total += cost
        print(f"{len(cells)} cells: {total}")


if __name__ == "__main__":
    main()
