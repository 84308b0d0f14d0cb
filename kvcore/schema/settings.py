"""Everything one cell needs to know."""

from typing import Annotated, Literal

from pydantic import Field

from kvcore.schema.dataset import DatasetSettings, LanguageSettings
from kvcore.schema.fields import Group, PositiveInt, Target
from kvcore.schema.model import ModelSettings
from kvcore.schema.rank_budget import RankBudgetSettings


class CaptureSettings(Group):
    """Where keys and values are read, which of them, and how many tokens at a time."""

    point: Literal["projection", "normed", "rotary"] = "projection"
    skip_first_tokens: Annotated[int, Field(ge=0)] = 0
    per_head: bool = False
    batch_tokens: PositiveInt = 1024
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 300.0


class SpectrumSettings(Group):
    """How keys and values are accumulated."""

    precision: Literal["standard", "exact"] = "standard"


class EvaluationSettings(Group):
    """Which tokens perplexity is measured on."""

    target: Target = "all"
    max_tokens: Annotated[int, Field(ge=2)] | None = None
    batch_tokens: PositiveInt = 1024


class Settings(Group):
    """Everything one cell needs to know."""

    model: ModelSettings
    dataset: DatasetSettings
    language: LanguageSettings
    rank_budget: RankBudgetSettings
    capture: CaptureSettings
    spectrum: SpectrumSettings
    evaluation: EvaluationSettings
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    output_root: Annotated[str, Field(min_length=1)] = "outputs"
    gates: Literal["fail", "warn"] = "fail"
