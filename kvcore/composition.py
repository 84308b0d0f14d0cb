"""What Hydra composes, as checked settings: of one cell, or of all the cells of a grid."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from kvcore.schema import (
    LaunchSettings,
    SettingError,
    Settings,
    SettingsError,
    SlurmSettings,
    SweepSettings,
    nearest,
    parse_cluster,
    parse_launch,
    parse_settings,
    setting_names,
)

MULTIRUN = ("-m", "--multirun")
_LAUNCH = tuple(LaunchSettings.model_fields)
_PACKAGES = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "slurm": "hydra-submitit-launcher",
}

Axes = Mapping[str, Sequence[str]]
"""Values of each group or setting that is chosen, by its name as on the command line."""


def settings_from(config: DictConfig) -> Settings:
    """Turn a composed configuration into checked settings.

    Raises:
        SettingsError: One line per fault.
    """
    values = _plain(config)
    return parse_settings({name: value for name, value in values.items() if name not in _LAUNCH})


def launch_from(config: DictConfig) -> LaunchSettings:
    """Return how a composed configuration asks for its grid to be launched.

    Raises:
        SettingsError: One line per fault.
    """
    return parse_launch({name: value for name, value in _plain(config).items() if name in _LAUNCH})


def launch_of(arguments: Sequence[str], configuration: Path) -> LaunchSettings:
    """Return how arguments as on the command line ask for their grid to be launched; see `grid_from`."""
    with initialize_config_dir(str(configuration), version_base="1.3"):
        return launch_from(compose("config", _single(_parsed(arguments))))


def grid_from(arguments: Sequence[str], configuration: Path) -> list[Settings]:
    """Compose the cells of a grid: the combinations of comma-separated choices, with those of an experiment's sweep.

    Args:
        arguments: Overrides as on the command line. One that an experiment sweeps over in all its parts is
            replaced; one that it sweeps over in some parts only (`sweep.parts`) chooses among their values.
        configuration: The folder `conf`.

    Raises:
        SettingError: A choice is in no part of the sweep, or one of several experiments has a sweep.
        SettingsError: No cell is left; or one line per fault of the first cell that has one.
    """
    with initialize_config_dir(str(configuration), version_base="1.3"):
        overrides = _parsed(arguments)
        sweep = launch_from(compose("config", _single(overrides))).sweep
        axes = _axes(overrides)
        for experiment in several if len(several := axes.get("experiment", [])) > 1 else []:
            if launch_from(compose("config", [experiment])).sweep != SweepSettings():
                name = experiment.partition("=")[2]
                raise SettingError("experiment", name, "is a grid of its own: one command for each of these")
        cells = dict.fromkeys(_combinations(axes, sweep))
        if not cells:
            raise SettingsError("no cell is left: the sweep of this experiment has none with all of these choices")
        return [settings_from(compose("config", list(cell))) for cell in cells]


def sweeps(arguments: Sequence[str], configuration: Path) -> bool:
    """Say whether arguments as on the command line ask for a grid: with -m, or by an experiment that sweeps."""
    if {"-h", "--help"} & set(arguments):
        return False
    if set(MULTIRUN) & set(arguments):
        return True
    if any(one.startswith(("-", "frozen=")) for one in arguments):  # a question to Hydra, or one cell of a grid
        return False
    return launch_of(arguments, configuration).sweep != SweepSettings()


def composed_settings(overrides: Sequence[str], configuration: Path) -> Settings:
    """Compose one cell from overrides as on the command line.

    Args:
        overrides: GROUP=OPTION and SETTING=VALUE.
        configuration: The folder `conf`.

    Raises:
        SettingsError: One line per fault.
    """
    with initialize_config_dir(str(configuration), version_base="1.3"):
        return settings_from(compose("config", list(overrides)))


def admit_unknown_settings(arguments: Sequence[str]) -> list[str]:
    """Turn overrides of settings into additions where they are not there to be overridden.

    Hydra stops at the first setting that the chosen option has not; added ones are refused by the check of the
    settings, together with all other faults.
    """
    known = {"experiment", *_LAUNCH, *(name for name in setting_names() if "." not in name)}

    def admit(argument: str) -> str:
        override = re.match(r"([A-Za-z_][\w.]*)=", argument)
        if override is None or override[1] in known or override[1].startswith(("hydra.", "model.parts.")):
            return argument
        return f"++{argument}"

    return [admit(argument) for argument in arguments]


def describe_configuration_error(error: Exception) -> str:
    """Turn an error of composing the configuration into a line that names the nearest valid names."""
    message = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and option in _PACKAGES:
            return _not_installed(option)
        return f"{group} = {option!r}: there is no such option; {nearest(option, list(error.options))}"
    return message


def describe_launcher_fault(error: RuntimeError) -> str | None:
    """Say why no cell was launched; None for every other error."""
    message = str(error).strip()
    if message.startswith("Unknown plugin class"):
        return _not_installed("slurm")  # of the others, the option itself is part of the package
    if message.startswith("Could not detect"):
        return f"hydra/launcher = 'slurm': {message}"
    if message.startswith("sbatch: ") and type(error).__name__ == "FailedJobError":
        return "Slurm refuses the jobs, with the words above"  # submitit has printed them
    return None


def slurm_from(arguments: Sequence[str], configuration: Path) -> SlurmSettings:
    """Return what arguments as on the command line ask of Slurm, such as `hydra.launcher.partition=...`.

    Raises:
        SettingError: They choose a launcher of another sort, or several values of one option.
        SettingsError: One line per fault.
    """
    with initialize_config_dir(str(configuration), version_base="1.3"):
        overrides = _parsed(arguments)
        for one in overrides:
            if one.is_sweep_override() and _is_for_hydra(name := one.get_key_element()):
                value = str(one.input_line).partition("=")[2]
                raise SettingError(
                    name, value, f"one for all cells; a value with commas in two pairs of quotes: \"'{value}'\""
                )
        hydra = compose("config", _single(overrides), return_hydra_config=True).hydra
    launcher = _plain(hydra.launcher)
    if not launcher.pop("_target_").endswith(".SlurmLauncher"):
        raise SettingError("hydra/launcher", hydra.runtime.choices["hydra/launcher"], "only Slurm is submitted to")
    del launcher["submitit_folder"]
    return parse_cluster(launcher)


def job_of(frozen: Path, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with which run.py runs a cell of a frozen grid, but for the cell's number."""
    return [f"frozen={_quoted(frozen.resolve())}", *(one for one in arguments if one.startswith("fail_fast="))]


def jobs_of(frozen: Path, cells: Iterable[int], output_root: Path, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with which Hydra runs cells of a frozen grid as jobs.

    Args:
        frozen: The grid's file.
        cells: Numbers of the cells.
        output_root: Where they write.
        arguments: The user's; those about launchers hold for the jobs, too, and an experiment may name callbacks.
    """
    kept = [one for one in arguments if _is_for_hydra(one) or one.startswith(("experiment=", "fail_fast="))]
    numbers = ",".join(map(str, cells))
    places = [f"frozen={_quoted(frozen.resolve())}", f"output_root={_quoted(output_root)}"]
    return ["--multirun", *kept, *places, f"cell={numbers}"]


def _not_installed(launcher: str) -> str:
    return f"hydra/launcher = {launcher!r}: needs {_PACKAGES[launcher]}; install kvcore with its extra: '.[cluster]'"


def _is_for_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def _quoted(path: Path) -> str:
    """Write a path as a value of an override."""
    escaped = str(path).replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"


def _parsed(arguments: Sequence[str]) -> list[Override]:
    given = [argument for argument in arguments if argument not in MULTIRUN]
    for argument in given:
        if argument.startswith("-"):
            raise SettingsError(
                f"{argument}: a grid has no such option; GROUP=OPTION,OPTION and SETTING=VALUE choose it"
            )
    loader = GlobalHydra.instance().config_loader()  # knows what glob(...) stands for
    return OverridesParser.create(config_loader=loader).parse_overrides(admit_unknown_settings(given))


def _axes(overrides: Iterable[Override]) -> dict[str, list[str]]:
    """Return each override with all its values, as overrides of one value each."""
    axes = {}
    for override in overrides:
        name, line = override.get_key_element(), str(override.input_line)
        sweeps = override.is_sweep_override()
        axes[name] = [f"{name}={value}" for value in override.sweep_string_iterator()] if sweeps else [line]
    return {name: choices for name, choices in axes.items() if not _is_for_hydra(name)}


def _single(overrides: Iterable[Override]) -> list[str]:
    """Return the overrides that hold for all cells."""
    return [str(override.input_line) for override in overrides if not override.is_sweep_override()]


def _combinations(given: Axes, sweep: SweepSettings) -> Iterable[tuple[str, ...]]:
    every = {**_named(sweep.every), **given}
    parts = [_named(part) for part in sweep.parts] or [{}]
    for name in {name for part in parts for name in part} & given.keys():
        known = {choice for part in parts for choice in part.get(name, [])}
        for choice in given[name]:
            if known and choice not in known:
                values = ", ".join(sorted(value.partition("=")[2] for value in known))
                raise SettingError(name, choice.partition("=")[2], f"not in the sweep of this experiment: {values}")
    for part in parts:
        kept = {name: [one for one in part[name] if one in given.get(name, [one])] for name in part}
        yield from product(*(every | kept).values())


def _named(choices: Mapping[str, str | tuple[str, ...]]) -> dict[str, list[str]]:
    lines = [f"{name}={value if isinstance(value, str) else ','.join(value)}" for name, value in choices.items()]
    return _axes(OverridesParser.create().parse_overrides(lines))


def _plain(config: DictConfig) -> dict[str, Any]:
    """Return plain values, without those left as `???`, so that they are reported as missing with all other faults."""
    values = _without_missing(OmegaConf.to_container(config, resolve=True))
    assert isinstance(values, dict)  # noqa: S101 - for the type checker
    return values


def _without_missing(values: Any) -> Any:  # noqa: ANN401 - a nested configuration value
    if isinstance(values, dict):
        return {key: _without_missing(value) for key, value in values.items() if value != "???"}
    return values
