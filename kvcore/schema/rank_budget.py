"""Which ranks the cost of compression is measured at: one class of settings for each way to choose them."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from kvcore.schema.errors import SettingError
from kvcore.schema.fields import Group, PositiveInt, RankRatios

Floor = Annotated[float, Field(ge=0, lt=1)]


def _require_once(setting: str, ratios: Sequence[float]) -> None:
    if len(set(ratios)) != len(ratios):
        raise SettingError(f"rank_budget.{setting}", list(ratios), "each ratio may occur once")
    if not ratios:
        raise SettingError(f"rank_budget.{setting}", list(ratios), "at least one ratio is needed")


class NoRankBudget(Group):
    """No truncation: spectra and the untruncated perplexity only."""

    name: Literal["none"]


class GridRankBudget(Group):
    """Every pair of a key ratio and a value ratio, each the same in all layers."""

    name: Literal["grid"]
    key_ratios: RankRatios
    value_ratios: RankRatios

    @model_validator(mode="after")
    def _ratios_are_a_grid(self) -> Self:
        _require_once("key_ratios", self.key_ratios)
        _require_once("value_ratios", self.value_ratios)
        return self


class _Budgets(Group):
    """Global budgets: cached numbers per token, as shares of the full cache."""

    budgets: RankRatios

    @field_validator("budgets")
    @classmethod
    def _budgets_are_distinct(cls, budgets: tuple[float, ...]) -> tuple[float, ...]:
        _require_once("budgets", budgets)
        return budgets


class UniformRankBudget(_Budgets):
    """One ratio for the keys and values of all layers."""

    name: Literal["uniform"]


class EnergyRankBudget(Group):
    """In each layer the smallest rank that holds a share of the energy; or the largest share within a budget."""

    name: Literal["energy"]
    shares: RankRatios = ()
    budgets: RankRatios = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.shares) == bool(self.budgets):
            raise SettingError(
                "rank_budget.shares", list(self.shares), "give either shares or budgets; the other is []"
            )
        _require_once("shares" if self.shares else "budgets", self.shares or self.budgets)
        return self


class WaterfillRankBudget(_Budgets):
    """The ranks that lose the least summed relative tail energy within a budget."""

    name: Literal["waterfill"]
    floor: Floor
    kind: Literal["pooled", "apart"]


class ImportanceRankBudget(_Budgets):
    """The dynamic allocation of Swift-SVD: importance of layers against loss of reconstruction."""

    name: Literal["importance"]
    floor: Floor
    alpha: Annotated[float, Field(ge=0, le=1)]
    tokens: PositiveInt


class SensitivityRankBudget(_Budgets):
    """The ranks that move predictions least, as measured by truncating each layer alone and all together."""

    name: Literal["sensitivity"]
    floor: Floor
    ratios: RankRatios
    tokens: PositiveInt

    @field_validator("ratios")
    @classmethod
    def _ratios_truncate(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        _require_once("ratios", ratios)
        if 1.0 in ratios:
            raise SettingError("rank_budget.ratios", list(ratios), "each must be below 1, or nothing is truncated")
        return ratios


class FileRankBudget(Group):
    """Ranks of a file written by an earlier run."""

    name: Literal["file"]
    path: Annotated[str, Field(min_length=1)]


RankBudgetSettings = Annotated[
    NoRankBudget
    | GridRankBudget
    | UniformRankBudget
    | EnergyRankBudget
    | WaterfillRankBudget
    | ImportanceRankBudget
    | SensitivityRankBudget
    | FileRankBudget,
    Field(discriminator="name"),
]
