"""Which ranks the cost of compression is measured at."""

from typing import Literal, Self

from pydantic import model_validator

from kvcore.schema.errors import SettingError
from kvcore.schema.fields import Group, RankRatios


class RankBudgetSettings(Group):
    """Which ranks perplexity is measured at."""

    name: Literal["grid", "none"]
    key_ratios: RankRatios = ()
    value_ratios: RankRatios = ()

    @model_validator(mode="after")
    def _grid_is_complete(self) -> Self:
        for setting, ratios in (("key_ratios", self.key_ratios), ("value_ratios", self.value_ratios)):
            if len(set(ratios)) != len(ratios):
                raise SettingError(f"rank_budget.{setting}", list(ratios), "each ratio may occur once")
            if self.name == "grid" and not ratios:
                raise SettingError(f"rank_budget.{setting}", list(ratios), "a grid needs at least one ratio")
            if self.name == "none" and ratios:
                raise SettingError(f"rank_budget.{setting}", list(ratios), "rank_budget none has no ratios")
        return self
