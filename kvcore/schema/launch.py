"""How a grid is launched; nothing of this changes a number."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from kvcore.schema.errors import SettingError
from kvcore.schema.fields import Group

Choices = str | Annotated[tuple[str, ...], Field(strict=False)]


class SweepSettings(Group):
    """The cells of a grid: every combination of some choices, with each of some parts.

    Attributes:
        every: Values by group or setting; all are combined.
        parts: The same; each part is combined with `every`, and the parts come one after the other.
    """

    every: Mapping[str, Choices] = {}
    parts: Annotated[tuple[Mapping[str, Choices], ...], Field(strict=False)] = ()


class LaunchSettings(Group):
    """What a grid is, and which of its cells are run.

    Attributes:
        sweep: The cells.
        rerun: `missing`: all that are not finished; `failed`: only those that have failed.
        fail_fast: Whether the first failure stops the grid.
        frozen: File of a frozen grid, of which one cell is run; set by a launcher.
        cell: Which one, counted from 0.
    """

    sweep: SweepSettings = SweepSettings()
    rerun: Literal["missing", "failed"] = "missing"
    fail_fast: bool = False
    frozen: str | None = None
    cell: Annotated[int, Field(ge=0)] | None = None

    def require_no_grid(self) -> None:
        """Refuse what only a grid has.

        Raises:
            SettingError: One cell is run, and something of it is asked that only a grid can do.
        """
        if self.cell is not None:
            raise self._no_frozen_cell()
        if self.rerun != "missing":
            raise SettingError("rerun", self.rerun, "only for a grid: with -m, or an experiment that sweeps")

    def require_frozen_cell(self) -> tuple[str, int]:
        """Return the file of the frozen grid, and which of its cells is run.

        Raises:
            SettingError: One is missing.
        """
        if self.frozen is None or self.cell is None:
            raise self._no_frozen_cell()
        return self.frozen, self.cell

    def _no_frozen_cell(self) -> SettingError:
        return SettingError("cell", self.cell, "goes with frozen=FILE, and names one of its cells, counted from 0")
