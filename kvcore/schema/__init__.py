"""Typed, frozen settings for every choice a user makes, checked as a whole before anything loads."""

from kvcore.schema.cluster import SlurmSettings
from kvcore.schema.dataset import ColumnSettings, DatasetSettings, LanguageSettings
from kvcore.schema.errors import BusyError, GateError, SettingError, SettingsError, UserError, first_line, nearest
from kvcore.schema.judge import JudgeSettings, NoJudge, OpenAIJudge, TransformersJudge
from kvcore.schema.launch import LaunchSettings, SweepSettings
from kvcore.schema.model import ExpectedGeometry, ModelSettings, WeightsPart
from kvcore.schema.parsing import parse_cluster, parse_launch, parse_settings, setting_names
from kvcore.schema.rank_budget import (
    EnergyRankBudget,
    FileRankBudget,
    GridRankBudget,
    ImportanceRankBudget,
    NoRankBudget,
    RankBudgetSettings,
    SensitivityRankBudget,
    UniformRankBudget,
    WaterfillRankBudget,
)
from kvcore.schema.settings import CaptureSettings, EvaluationSettings, HeldOutSettings, Settings, SpectrumSettings
from kvcore.schema.tracker import NoTracker, TrackerSettings, WandbTracker

__all__ = [
    "BusyError",
    "CaptureSettings",
    "ColumnSettings",
    "DatasetSettings",
    "EnergyRankBudget",
    "EvaluationSettings",
    "ExpectedGeometry",
    "FileRankBudget",
    "GateError",
    "GridRankBudget",
    "HeldOutSettings",
    "ImportanceRankBudget",
    "JudgeSettings",
    "LanguageSettings",
    "LaunchSettings",
    "ModelSettings",
    "NoJudge",
    "NoRankBudget",
    "NoTracker",
    "OpenAIJudge",
    "RankBudgetSettings",
    "SensitivityRankBudget",
    "SettingError",
    "Settings",
    "SettingsError",
    "SlurmSettings",
    "SpectrumSettings",
    "SweepSettings",
    "TrackerSettings",
    "TransformersJudge",
    "UniformRankBudget",
    "UserError",
    "WandbTracker",
    "WaterfillRankBudget",
    "WeightsPart",
    "first_line",
    "nearest",
    "parse_cluster",
    "parse_launch",
    "parse_settings",
    "setting_names",
]
