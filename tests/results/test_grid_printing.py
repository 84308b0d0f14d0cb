"""What is printed of many cells, whatever they are called."""

import io
from pathlib import Path

from results_example import cost_tables, write_cell
from rich.console import Console

from kvcore.results.collection import collect
from kvcore.results.comparison import compare_budgets
from kvcore.results.ner_table import ner_fields
from kvcore.results.printing.grid import print_comparison, print_ner_table, print_transfers
from kvcore.results.transfer import transfers

NAME = "[/b]"  # markup of the library that prints


def test_names_stay_text(tmp_path: Path) -> None:
    tables = cost_tables("uniform", {1.0: [10.0, 20.0], 0.5: [16.0, 32.0]}, [10, 20])
    for evaluated_on in ("d", "e"):
        path = write_cell(tmp_path, "m", "d", evaluated_on=evaluated_on, rank_budget="uniform", tables=tables)
        path.write_text(path.read_text().replace('"name": "m"', f'"name": "{NAME}"').replace('"d"', f'"{NAME}"'))
    cells, screen = collect(tmp_path).cells, io.StringIO()
    console = Console(file=screen, width=100)
    print_ner_table(console, ner_fields(cells))
    print_comparison(console, compare_budgets(cells))
    print_transfers(console, transfers(cells))
    said = screen.getvalue()
    assert said.count(f" {NAME} ") == 4
    assert f"\n{NAME}: ranks from {NAME}, english" in said
    assert f"\n{NAME}, uniform 0.5: delta NLL" in said
