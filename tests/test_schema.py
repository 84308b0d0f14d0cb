"""Settings: typed, frozen, and all faults at once."""

import math
from typing import Any

import pytest
from conftest import REPOSITORY, composed
from pydantic import ValidationError

from kvcore.schema import SettingsError, nearest, parse_settings, setting_names


def faults(*overrides: str, **changes: Any) -> list[str]:
    values = composed(*overrides)
    for dotted, value in changes.items():
        *groups, name = dotted.split("__")
        target = values
        for group in groups:
            target = target[group]
        target[name] = value
    with pytest.raises(SettingsError) as caught:
        parse_settings(values)
    return str(caught.value).splitlines()


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml"))


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, option)
        for group in ("model", "dataset", "rank_budget", "capture", "evaluation", "tracker")
        for option in options(group)
    ],
)
def test_every_option_composes_and_checks(group: str, option: str) -> None:
    given = {"folder": "path=/somewhere", "local": "path=/somewhere.json", "hub": "id=owner/name"}.get(option)
    assert parse_settings(composed(f"{group}={option}", *([f"{group}.{given}"] if given else [])))


def test_the_demo_is_the_default_cell_with_less_to_evaluate() -> None:
    default, demo = parse_settings(composed()), parse_settings(composed("experiment=demo"))
    assert demo.evaluation.max_tokens == 1000
    assert demo.model_copy(update={"evaluation": default.evaluation}) == default
    assert default.rank_budget.key_ratios == (1.0, 0.8, 0.6, 0.4, 0.2) == default.rank_budget.value_ratios


def test_all_faults_are_reported_at_once() -> None:
    found = faults(
        "rank_budget.key_ratios=[1.5,0.5]", "seed=-1", "dataset.max_tokens=many", "language.name=klingon", "gates=maybe"
    )
    assert found == [
        "dataset.max_tokens = 'many': input should be a valid integer",
        "rank_budget.key_ratios.0 = 1.5: input should be less than or equal to 1",
        "seed = -1: input should be greater than or equal to 0",
        "gates = 'maybe': input should be 'fail' or 'warn'",
        "language.name = 'klingon': dataset pocket_general has english",
    ]


@pytest.mark.parametrize("ratio", [0, -0.5, 1.0001, math.nan, math.inf, "half", True, None])
def test_ratios_outside_are_refused(ratio: Any) -> None:
    (fault,) = faults(rank_budget__value_ratios=[1.0, ratio])
    assert fault.startswith(f"rank_budget.value_ratios.1 = {ratio!r}: ")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dataset__max_examples", 0),
        ("dataset__max_tokens", 1.5),
        ("dataset__max_tokens", True),
        ("dataset__max_length", 1),
        ("capture__batch_tokens", 0),
        ("capture__point", "output"),
        ("evaluation__target", "prompt"),
        ("evaluation__max_tokens", 1),
        ("evaluation__share", 1.0),
        ("evaluation__share", -0.1),
        ("model__dtype", "int8"),
        ("model__device", "tpu"),
        ("model__template", "alpaca"),
        ("model__name", "../escape"),
        ("model__sha256", "abc"),
        ("dataset__name", ""),
        ("dataset__columns__text", ""),
        ("output_root", ""),
        ("seed", "1"),
    ],
)
def test_values_out_of_range_are_named(setting: str, value: Any) -> None:
    (fault,) = faults(**{setting: value})
    assert fault.startswith(f"{setting.replace('__', '.')} = {value!r}: ")


def test_rules_over_several_settings() -> None:
    assert faults(rank_budget__key_ratios=[0.5, 0.5]) == [
        "rank_budget.key_ratios = [0.5, 0.5]: each ratio may occur once"
    ]
    assert faults(rank_budget__value_ratios=[]) == ["rank_budget.value_ratios = []: at least one ratio is needed"]
    assert faults("rank_budget=none", rank_budget__key_ratios=[0.5]) == [
        "rank_budget.key_ratios is no setting of rank_budget none: known: name"
    ]
    assert faults(rank_budget={"name": "gridd"}) == ["rank_budget.name = 'gridd': did you mean grid?"]
    assert faults(rank_budget={"name": "waterfill", "budgets": [0.5, 0.5], "floor": 1.0, "kind": "pooled"}) == [
        "rank_budget.budgets = [0.5, 0.5]: each ratio may occur once",
        "rank_budget.floor = 1.0: input should be less than 1",
    ]
    sensitivity = {"name": "sensitivity", "budgets": [0.5], "floor": 0.0, "tokens": 512}
    assert faults(rank_budget=sensitivity | {"ratios": [0.5, 1.0]}) == [
        "rank_budget.ratios = [0.5, 1.0]: each must be below 1, or nothing is truncated"
    ]
    assert faults(rank_budget=sensitivity | {"ratios": []}) == ["rank_budget.ratios = []: at least one ratio is needed"]
    for energy in ({}, {"shares": [0.9], "budgets": [0.5]}):
        (fault,) = faults(rank_budget={"name": "energy", **energy})
        assert fault.endswith("give either shares or budgets; the other is []")
    assert faults("dataset@held_out.dataset=pocket_code", held_out__dataset__max_tokens=5) == [
        "held_out.dataset.max_tokens = 5: set evaluation.max_tokens instead"
    ]
    assert faults("language@held_out.language=german") == [
        "held_out.language.name = 'german': goes with another dataset to evaluate on: dataset@held_out.dataset=..."
    ]
    assert parse_settings(composed("dataset=local", "dataset.path=x", "language.name=swahili")).held_out.dataset is None
    assert faults("dataset@held_out.dataset=pocket_code", "language@held_out.language=german") == [
        "held_out.language.name = 'german': dataset pocket_code has english"
    ]
    assert faults(model__sha256=None) == ["model.source = 'packaged': needs model.parts and model.sha256"]
    assert faults(model__path="/models/mine") == ["model.path = '/models/mine': goes with model=folder"]
    assert faults("model=folder", model__path=None) == ["model.path = None: source folder needs the path of a folder"]
    assert faults(dataset__columns__instruction=None) == [
        "dataset.columns.instruction = None: map instruction and output, or text"
    ]
    for prompt in ("{question}", "{input.name}", "{input[0]}", "{", "{0}"):
        assert faults(dataset__prompt=prompt)[0].startswith(f"dataset.prompt = {prompt!r}: may use {{instruction}}")


def test_unknown_and_missing_settings() -> None:
    (fault,) = faults(dataset__max_exmples=3)
    assert fault.startswith("dataset.max_exmples is no setting: did you mean dataset.max_examples")
    values = composed()
    del values["evaluation"], values["model"]["name"]
    with pytest.raises(SettingsError) as caught:
        parse_settings(values)
    assert str(caught.value).splitlines() == ["model.name is missing", "evaluation is missing"]


def test_settings_cannot_be_changed() -> None:
    settings = parse_settings(composed())
    with pytest.raises(ValidationError, match="frozen"):
        settings.dataset.max_tokens = 5


def test_nearest_names() -> None:
    assert nearest("smollm", ["smollm2_135m", "gemma3_270m"]) == "did you mean smollm2_135m?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert {"seed", "dataset.columns.text", "model.parts", "rank_budget.key_ratios"} <= set(setting_names())
