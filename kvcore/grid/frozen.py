"""A grid as a file: the settings of all its cells, as they were when it was launched."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from kvcore.cell import identity, prepare_output_root, write_atomically, writing_to
from kvcore.schema import SettingError, Settings, parse_settings

FOLDER = "grids"
CELLS = "cells"  # in it: word of the folder and the failure of each cell
SCHEMA_VERSION = 1
_WHERE = {"output_root", "grid", "tracker"}  # it is the same cell wherever it is written and whoever is told of it


@dataclass(frozen=True)
class FrozenCell:
    """One cell of a grid.

    Attributes:
        key: Names it before its weights and data are read; its id, which stands for their content, comes when it runs.
        settings: As plain values.
    """

    key: str
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Say which cell it is."""
        model, dataset, language, budget = self.names.values()
        return f"{model} on {dataset}, {language}, {budget}"

    @property
    def names(self) -> dict[str, str]:
        """The names of its model, dataset, language and rank budget."""
        return {group: self.settings[group]["name"] for group in ("model", "dataset", "language", "rank_budget")}


@dataclass(frozen=True)
class FrozenGrid:
    """Cells in the order in which they run: all of one model, then those of the next.

    Attributes:
        name: Of the grid.
        output_root: Where its cells write.
        cells: All of them.
        to_run: Those that the last launch found missing, counted from 0.
        launched: When that was, in seconds since 1970.
    """

    name: str
    output_root: Path
    cells: tuple[FrozenCell, ...]
    to_run: tuple[int, ...] = ()
    launched: float = 0.0

    @property
    def path(self) -> Path:
        """Its file."""
        return self.output_root / FOLDER / f"{self.name}-{identity({'cells': [cell.key for cell in self.cells]})}.json"

    def launch(self, to_run: Sequence[int]) -> Self:
        """Return the grid as it is launched now, written to its file.

        Raises:
            SettingError: `output_root` cannot be written to.
        """
        launched = replace(self, to_run=tuple(to_run), launched=time.time())
        prepare_output_root(str(self.output_root))
        content = asdict(launched) | {"schema_version": SCHEMA_VERSION}
        del content["output_root"]  # the file lies in it
        with writing_to(str(self.output_root)):
            (self.path.parent / CELLS).mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return launched

    def settings(self, number: int) -> Settings:
        """Return the settings of a cell, checked.

        Raises:
            SettingError: There is no such cell.
        """
        if number >= len(self.cells):
            raise SettingError("cell", number, f"{self.path} has {len(self.cells)} cells, counted from 0")
        return parse_settings(self.cells[number].settings)


def freeze(cells: Sequence[Settings]) -> FrozenGrid:
    """Make a grid of cells, each once, those of a model together.

    Raises:
        SettingError: They are not to be written to the same place.
    """
    first = cells[0]
    for cell in cells:
        if cell.output_root != first.output_root:
            raise SettingError(
                "output_root", cell.output_root, f"one for all cells of a grid; another: {first.output_root}"
            )
    models = list(dict.fromkeys(cell.model for cell in cells))
    ordered = sorted(cells, key=lambda cell: models.index(cell.model))
    frozen = {_key(cell): FrozenCell(_key(cell), cell.model_dump(mode="json")) for cell in ordered}
    return FrozenGrid(first.grid or "grid", Path(first.output_root).expanduser(), tuple(frozen.values()))


def read_frozen(path: Path) -> FrozenGrid:
    """Read a grid from its file.

    Raises:
        SettingError: It cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"its schema version is not {SCHEMA_VERSION}")
        cells = tuple(FrozenCell(**cell) for cell in content.pop("cells"))
        to_run = tuple(content.pop("to_run"))
        grid = FrozenGrid(output_root=path.parent.parent, cells=cells, to_run=to_run, **content)
        if any(not isinstance(name, str) for cell in cells for name in [cell.key, *cell.names.values()]):
            raise ValueError("a cell has a name that is not text")
        return grid
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(
            "frozen", str(path), f"no grid that can be read ({type(error).__name__}: {error})"
        ) from error


def _key(settings: Settings) -> str:
    return identity(settings.model_dump(mode="json", exclude=_WHERE))
