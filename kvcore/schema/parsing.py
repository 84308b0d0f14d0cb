"""Checking plain values as a whole, with every fault named."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from kvcore.schema.errors import SettingError, SettingsError, nearest
from kvcore.schema.settings import Settings


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


def setting_names(group: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Return the dotted names of all settings and groups of settings."""
    names = []
    for name, field in group.model_fields.items():
        names.append(f"{prefix}{name}")
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += setting_names(inner, f"{prefix}{name}.")
    return names


def _nearest_settings(setting: str) -> str:
    """Name the settings closest to a misspelt one, or those beside it if none is close."""
    names = setting_names()
    if get_close_matches(setting, names):
        return nearest(setting, names)
    group = setting.rpartition(".")[0]
    prefix = f"{group}." if group in names else ""
    return nearest(setting, [name for name in names if name.startswith(prefix) and "." not in name[len(prefix) :]])


def _describe(fault: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails, whose keys vary
    setting = ".".join(str(part) for part in fault["loc"]) or "settings"
    if fault["type"] == "extra_forbidden":
        return f"{setting} is no setting: {_nearest_settings(setting)}"
    if fault["type"] == "missing":
        return f"{setting} is missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "tuple_type":
        message = "input should be a list, such as [1.0, 0.5]"
    if fault["type"] == "value_error":  # raised here as SettingError, which names the setting
        return message
    return f"{setting} = {fault['input']!r}: {message[0].lower()}{message[1:]}"


def _language_faults(values: Mapping[str, Any]) -> list[str]:
    """Check across groups, whether or not the groups themselves are in order."""
    dataset, language = values.get("dataset"), values.get("language")
    if isinstance(dataset, Mapping) and isinstance(language, Mapping):
        name, available = language.get("name"), dataset.get("languages")
        if isinstance(available, list | tuple) and name not in available:
            allowed = f"dataset {dataset.get('name')} has {', '.join(map(str, available))}"
            return [str(SettingError("language.name", name, allowed))]
    return []
