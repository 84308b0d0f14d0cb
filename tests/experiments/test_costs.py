"""What compression costs, from the command line: compare, transfer, correlate, estimate."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_llama, tiny_overrides
from results_example import cost_tables, write_cell
from scripts import call

from kvcore.results.correlation import PREDICTORS


def test_budgets_are_run_and_compared(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    overrides = [o for o in tiny_overrides(tiny_folder, tiny_data, tmp_path / "outputs") if "rank_budget" not in o]
    budgets = ["rank_budget=uniform,waterfill", "rank_budget.budgets=[0.5]"]
    done = call("run.py", "-m", *overrides, *budgets, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "waterfill 0.5" in done.stdout
    compared = call("compare.py", "outputs", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    table = pd.read_csv(tmp_path / compared.stdout.splitlines()[-1]).set_index("strategy")
    assert set(table.index) == {"uniform", "waterfill"}
    assert table["share"]["waterfill"] == pytest.approx(table["delta_nll"]["waterfill"] / table["delta_nll"]["uniform"])

    for script in ("correlate.py", "transfer.py"):
        refused = call(script, "outputs", cwd=tmp_path)
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("script", "place"),
    [("compare.py", "comparison.csv/x"), ("correlate.py", "correlations"), ("transfer.py", "transfer")],
)
def test_outputs_that_cannot_be_written_are_one_line(script: str, place: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for data in "abc":
        grid = cost_tables("grid", {(1.0, 1.0): [1.0, 2.0], (0.5, 0.5): list(generator.uniform(2, 3, 2))}, [1, 1])
        kinds = {"kind": ["key", "value"], "kv_dim": 8}
        metrics = {name: generator.uniform(size=2) for name in PREDICTORS}
        write_cell(tmp_path, "m", data, tables=grid | {"layers": pd.DataFrame(kinds | metrics)})
    uniform = cost_tables("uniform", {1.0: [1.0], 0.5: [2.0]}, [1])
    write_cell(tmp_path, "m", "a", evaluated_on="b", rank_budget="uniform", tables=uniform)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    done = call(script, str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"output_root = '{tmp_path}': cannot be written to")
    assert len(done.stderr.splitlines()) == 1


def test_one_command_runs_and_draws_a_transfer_matrix(tmp_path: Path) -> None:
    from conftest import byte_tokenizer

    tiny_llama(max_position_embeddings=4096).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    data = "pocket_code,pocket_medical"
    done = call(
        "run.py", "experiment=transfer", "model=folder", f"model.path={tmp_path / 'model'}", "model.name=tiny",
        f"dataset={data}", f"dataset@held_out.dataset={data}", "dataset.max_tokens=1000", "evaluation.max_tokens=200",
        "gates=warn", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = tmp_path / "outputs" / "transfer" / "transfer"
    assert {path.name for path in drawn.iterdir()} == {
        f"tiny-waterfill_{budget}.{ending}" for budget in (0.75, 0.5) for ending in ("csv", "png", "pdf")
    }
    matrix = pd.read_csv(drawn / "tiny-waterfill_0.5.csv", index_col=0)
    assert list(matrix.index) == list(matrix.columns) == ["pocket_code", "pocket_medical"]
    assert matrix.notna().all(axis=None)
    assert len(list((tmp_path / "outputs" / "transfer" / "spectra").glob("[!.]*"))) == 2  # a row shares its basis


def test_the_cost_of_judging_is_said_without_asking(tiny_folder: Path, tmp_path: Path) -> None:
    grid = ["judge=openai", "judge.model=m", "judge.prompts=4", "judge.anchor_share=0.5", "dataset=pocket_code"]
    model = ["model=folder", f"model.path={tiny_folder}", "model.context=100000", "dataset.max_length=500"]
    done = call("judge_cost.py", *grid, *model, "rank_budget=uniform,none", "judge.max_new_tokens=20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.partition("at most ")[2].split()[0] for line in done.stdout.splitlines()] == ["22", "6", "28"]
    refused = call("judge_cost.py", *grid, *model, "judge.max_new_tokens=500", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("judge.max_new_tokens = 500: the longest prompt has")
