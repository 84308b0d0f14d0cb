"""Write the page of a grid, which opens from disk without network: python experiments/report.py [OUTPUTS].

It goes to OUTPUTS/report/index.html, at any time: cells that are not finished are listed with the reason.
"""

import argparse
import sys
from pathlib import Path

from kvcore.command_line import clear_errors
from kvcore.schema import SettingError


def main() -> None:
    """Collect what is there and write the page."""
    parser = argparse.ArgumentParser(description="Write one self-contained page: overview, tables, figures, cells.")
    parser.add_argument("outputs", nargs="?", default="outputs", type=Path, help="an output_root (default: outputs)")
    parser.add_argument(
        "--detailed-cells",
        type=int,
        metavar="N",
        default=300,
        help="how many finished cells have figures of their own, about 30 KB each (default: 300)",
    )
    arguments = parser.parse_args()
    with clear_errors():
        from kvcore.cell import RECORD_NAME
        from kvcore.grid.states import states
        from kvcore.results.collection import Problem, collect, no_cells
        from kvcore.results.publication import REPORT_FOLDER, make_publication
        from kvcore.results.report import write_report

        outputs = arguments.outputs
        if arguments.detailed_cells < 0:
            raise SettingError("--detailed-cells", arguments.detailed_cells, "0 or more")
        unreadable: list[Problem] = []
        known = states(outputs, unreadable=unreadable.append)
        finished = any((outputs / "runs").glob(f"*/*/*/{RECORD_NAME}"))
        publication = make_publication(collect(outputs) if finished or known.empty else no_cells())
        written = write_report(
            publication,
            outputs / REPORT_FOLDER / "index.html",
            states=known,
            unreadable=unreadable,
            detailed_cells=arguments.detailed_cells,
        )
        if written.left_out:
            print(
                f"{written.left_out} cells have no figures of their own: --detailed-cells N changes that",
                file=sys.stderr,
            )
        print(written.path)


if __name__ == "__main__":
    main()
