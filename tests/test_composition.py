"""Which cells a command line asks for."""

from pathlib import Path

import pytest
from conftest import REPOSITORY
from hydra.core.override_parser.overrides_parser import OverridesParser

from kvcore.composition import grid_from, jobs_of, slurm_from, sweeps
from kvcore.schema import SettingError, Settings, SettingsError

CONFIGURATION = REPOSITORY / "conf"


def grid(*arguments: str) -> list[Settings]:
    return grid_from(arguments, CONFIGURATION)


def names(cells: list[Settings]) -> list[tuple[str, str, str]]:
    return [(cell.model.name, cell.dataset.name, cell.language.name) for cell in cells]


@pytest.mark.parametrize(
    ("experiment", "models", "multilingual"), [("pocket", 2, "pocket_multilingual"), ("published", 7, "visr_bench")]
)
def test_the_benchmarks_hold_each_possible_cell_once(experiment: str, models: int, multilingual: str) -> None:
    cells = names(grid(f"experiment={experiment}"))
    assert len(cells) == len(set(cells)) == models * 21
    assert len({model for model, _, _ in cells}) == models
    for dataset in {dataset for _, dataset, _ in cells}:
        languages = {language for _, one, language in cells if one == dataset}
        assert len(languages) == (16 if dataset == multilingual else 1)
        assert "english" in languages


def test_a_part_of_a_benchmark() -> None:
    assert names(grid("experiment=pocket", "dataset=pocket_multilingual", "language=german,english")) == [
        (model, "pocket_multilingual", language)
        for model in ("smollm2_135m", "gemma3_270m")
        for language in ("english", "german")
    ]
    assert len(grid("experiment=pocket", "language=english")) == 12
    assert names(grid("experiment=pocket", "model=qwen3_4b", "dataset=pocket_code")) == [
        ("qwen3_4b", "pocket_code", "english")
    ]


def test_choices_that_are_not_in_a_benchmark() -> None:
    with pytest.raises(SettingError, match="^dataset = 'alpaca': not in the sweep of this experiment: pocket_code, "):
        grid("experiment=pocket", "dataset=alpaca")
    with pytest.raises(SettingsError, match="no cell is left"):
        grid("experiment=pocket", "dataset=pocket_code", "language=german")


def test_further_choices_multiply() -> None:
    cells = grid("experiment=pocket", "dataset=pocket_code", "seed=1,2", "hydra.job.name=not_a_choice")
    assert [cell.seed for cell in cells] == [1, 2, 1, 2]


def test_a_sweep_of_ones_own() -> None:
    cells = grid(
        "sweep.every={seed: '1,2'}",
        "sweep.parts=[{language: english}, {language: german}]",
        "dataset=pocket_multilingual",
    )
    assert [(cell.language.name, cell.seed) for cell in cells] == [
        ("english", 1), ("english", 2), ("german", 1), ("german", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", "seed=1,2"], True),
        (["--multirun"], True),
        (["experiment=pocket"], True),
        (["experiment=demo"], False),
        (["-m", "--help"], False),
        ([], False),
        (["experiment=pocket", "--cfg", "job"], False),
        (["frozen=file", "cell=1", "experiment=pocket"], False),
    ],
)
def test_what_is_a_grid(arguments: list[str], expected: bool) -> None:
    assert sweeps(arguments, CONFIGURATION) is expected


def test_jobs_keep_what_is_about_launching() -> None:
    root = Path("/it's a \\ folder")
    arguments = [
        "experiment=transfer",
        "seed=1,2",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "fail_fast=true",
    ]
    jobs = jobs_of(root / "grids" / "a.json", [3, 5], root, arguments)
    assert jobs[0] == "--multirun"
    parsed = {one.key_or_group: one for one in OverridesParser.create().parse_overrides(jobs[1:])}
    assert set(parsed) == {
        "experiment",
        "hydra/launcher",
        "hydra.launcher.n_jobs",
        "fail_fast",
        "frozen",
        "output_root",
        "cell",
    }
    assert parsed["frozen"].value() == str(root / "grids" / "a.json")
    assert parsed["output_root"].value() == str(root)
    assert list(parsed["cell"].sweep_string_iterator()) == ["3", "5"]


def test_what_slurm_is_asked_for_is_one_thing_and_nothing_of_it_is_dropped() -> None:
    with pytest.raises(SettingError, match=r"^hydra.launcher.exclude = 'node1,node2': .*: \"'node1,node2'\"$"):
        slurm_from(["hydra/launcher=slurm", "seed=1,2", "hydra.launcher.exclude=node1,node2"], CONFIGURATION)
    slurm = slurm_from(["hydra/launcher=slurm", "seed=1,2", "hydra.launcher.exclude='node1,node2'"], CONFIGURATION)
    assert slurm.exclude == "node1,node2"


def test_an_experiment_that_sweeps_is_not_one_choice_of_several() -> None:
    """Its sweep would be left out without a word."""
    with pytest.raises(SettingError, match="^experiment = 'pocket': is a grid of its own"):
        grid("experiment=demo,pocket")


def test_an_option_of_hydra_is_named() -> None:
    with pytest.raises(SettingsError, match="^--cfg: a grid has no such option"):
        grid("--cfg", "job", "seed=1,2")


def test_a_pattern_is_the_options_that_it_fits() -> None:
    assert names(grid("dataset=glob(pocket_co*)")) == [
        ("smollm2_135m", name, "english") for name in ("pocket_code", "pocket_code_evolved")
    ]
