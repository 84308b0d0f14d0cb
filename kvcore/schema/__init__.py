"""Typed, frozen settings for every choice a user makes, checked as a whole before anything loads."""

from kvcore.schema.dataset import ColumnSettings, DatasetSettings, LanguageSettings
from kvcore.schema.errors import GateError, SettingError, SettingsError, UserError, first_line, nearest
from kvcore.schema.model import ExpectedGeometry, ModelSettings, WeightsPart
from kvcore.schema.parsing import parse_settings, setting_names
from kvcore.schema.rank_budget import RankBudgetSettings
from kvcore.schema.settings import CaptureSettings, EvaluationSettings, Settings, SpectrumSettings

__all__ = [
    "CaptureSettings",
    "ColumnSettings",
    "DatasetSettings",
    "EvaluationSettings",
    "ExpectedGeometry",
    "GateError",
    "LanguageSettings",
    "ModelSettings",
    "RankBudgetSettings",
    "SettingError",
    "Settings",
    "SettingsError",
    "SpectrumSettings",
    "UserError",
    "WeightsPart",
    "first_line",
    "nearest",
    "parse_settings",
    "setting_names",
]
