"""Everything one cell needs to know."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kvcore.schema.dataset import DatasetSettings, LanguageSettings
from kvcore.schema.errors import SettingError
from kvcore.schema.fields import Group, Name, PositiveInt, Target
from kvcore.schema.judge import JudgeSettings
from kvcore.schema.model import ModelSettings
from kvcore.schema.rank_budget import RankBudgetSettings
from kvcore.schema.tracker import TrackerSettings


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
    """Which examples and tokens the cost of compression is measured on."""

    share: Annotated[float, Field(ge=0, lt=1)]
    target: Target = "all"
    max_examples: PositiveInt | None = None
    max_tokens: Annotated[int, Field(ge=2)] | None = None
    batch_tokens: PositiveInt = 1024


class HeldOutSettings(Group):
    """Another dataset to evaluate on; without one, the cell's own."""

    dataset: DatasetSettings | None = None
    language: LanguageSettings

    @model_validator(mode="after")
    def _limits_are_those_of_the_evaluation(self) -> Self:
        for limit in ("max_examples", "max_tokens"):
            if self.dataset and getattr(self.dataset, limit) is not None:
                value = getattr(self.dataset, limit)
                raise SettingError(f"held_out.dataset.{limit}", value, f"set evaluation.{limit} instead")
        return self


class Settings(Group):
    """Everything one cell needs to know."""

    model: ModelSettings
    dataset: DatasetSettings
    language: LanguageSettings
    rank_budget: RankBudgetSettings
    capture: CaptureSettings
    spectrum: SpectrumSettings
    evaluation: EvaluationSettings
    held_out: HeldOutSettings
    judge: JudgeSettings
    tracker: TrackerSettings
    grid: Name | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    output_root: Annotated[str, Field(min_length=1)] = "outputs"
    gates: Literal["fail", "warn"] = "fail"
