"""Checking plain values as a whole, with every fault named."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from kvcore.schema.cluster import SlurmSettings
from kvcore.schema.errors import SettingError, SettingsError, nearest
from kvcore.schema.launch import LaunchSettings
from kvcore.schema.settings import Settings

_OF_THE_DATA = ("dataset", "language")


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """Check plain nested values and return them as settings.

    Args:
        values: Nested mappings as read from the configuration, without interpolations.

    Raises:
        SettingsError: One line per fault; each names the dotted setting, the value and what is allowed.
    """
    faults = _language_faults(values)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        faults = [_describe(fault) for fault in error.errors()] + faults
    if faults:
        raise SettingsError("\n".join(faults))
    return settings


def parse_launch(values: Mapping[str, Any]) -> LaunchSettings:
    """Check how a grid is to be launched, as `parse_settings` does for a cell.

    Raises:
        SettingsError: One line per fault.
    """
    try:
        return LaunchSettings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("\n".join(_describe(fault) for fault in error.errors())) from error


def parse_cluster(values: Mapping[str, Any]) -> SlurmSettings:
    """Check what Slurm is asked for, as `parse_settings` does for a cell.

    Args:
        values: Those of conf/hydra/launcher/slurm.yaml, without what only Hydra's launcher reads.

    Raises:
        SettingsError: One line per fault.
    """
    try:
        return SlurmSettings.model_validate(values)
    except ValidationError as error:
        faults = [_describe({**fault, "loc": ("hydra.launcher", *fault["loc"])}) for fault in error.errors()]
        raise SettingsError("\n".join(faults)) from error


def setting_names(group: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Return the dotted names of all settings and groups of settings, whichever options are chosen."""
    names: dict[str, None] = {}
    for name, field in group.model_fields.items():
        names[f"{prefix}{name}"] = None
        for inner in _groups_in(field.annotation):
            names |= dict.fromkeys(setting_names(inner, f"{prefix}{name}."))
    return list(names)


def _groups_in(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - any type hint
    """Yield the classes of settings that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _groups_in(argument)


def _options_of(field: str) -> dict[str, type[BaseModel]]:
    """Return the classes of a group that has one for each of its options, by the option's name."""
    groups = list(_groups_in(Settings.model_fields[field].annotation)) if field in Settings.model_fields else []
    return {str(get_args(group.model_fields["name"].annotation)[0]): group for group in groups if len(groups) > 1}


def _nearest_settings(setting: str) -> str:
    """Name the settings closest to a misspelt one, or those beside it if none is close."""
    names = setting_names()
    if get_close_matches(setting, names):
        return nearest(setting, names)
    group = setting.rpartition(".")[0]
    prefix = f"{group}." if group in names else ""
    return nearest(setting, [name for name in names if name.startswith(prefix) and "." not in name[len(prefix) :]])


def _describe(fault: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails, whose keys vary
    path = [str(part) for part in fault["loc"]] or ["settings"]
    options = _options_of(path[0])
    option = path.pop(1) if len(path) > 1 and options else None  # pydantic names the option it has chosen
    setting = ".".join(path)
    if fault["type"] == "extra_forbidden":
        if setting.startswith("hydra.launcher."):
            return f"{setting} is no setting: other options of sbatch go into hydra.launcher.additional_parameters"
        if option is not None:
            known = ", ".join(options[option].model_fields)
            return f"{setting} is no setting of {path[0]} {option}: known: {known}"
        return f"{setting} is no setting: {_nearest_settings(setting)}"
    if fault["type"] == "missing":
        return f"{setting} is missing"
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        given = fault["input"].get("name") if isinstance(fault["input"], Mapping) else fault["input"]
        return str(SettingError(f"{setting}.name", given, nearest(str(given), list(options))))
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "tuple_type":
        message = "input should be a list, such as [1.0, 0.5]"
    if fault["type"] == "value_error":  # raised here as SettingError, which names the setting
        return message
    return f"{setting} = {fault['input']!r}: {message[0].lower()}{message[1:]}"


def _language_faults(values: Mapping[str, Any]) -> list[str]:
    """Check across groups, whether or not the groups themselves are in order."""
    faults = []
    held_out, language = values.get("held_out"), values.get("language")
    if isinstance(held_out, Mapping) and isinstance(language, Mapping) and held_out.get("dataset") is None:
        other = held_out.get("language")
        if isinstance(other, Mapping) and other != language:
            allowed = "goes with another dataset to evaluate on: dataset@held_out.dataset=..."
            faults.append(str(SettingError("held_out.language.name", other.get("name"), allowed)))
    for prefix, groups in (("", values), ("held_out.", values.get("held_out"))):
        dataset, language = (groups.get(name) if isinstance(groups, Mapping) else None for name in _OF_THE_DATA)
        if isinstance(dataset, Mapping) and isinstance(language, Mapping):
            name, available = language.get("name"), dataset.get("languages")
            if isinstance(available, list | tuple) and name not in available:
                allowed = f"dataset {dataset.get('name')} has {', '.join(map(str, available))}"
                faults.append(str(SettingError(f"{prefix}language.name", name, allowed)))
    return faults
