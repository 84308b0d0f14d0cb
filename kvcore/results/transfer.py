"""The transfer matrix: what it costs to compress one dataset's cache with the bases and ranks of another."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from kvcore.results import figures
from kvcore.results.collection import cell_table, on_own_data, trusted
from kvcore.results.ner_table import NOT_CONVERGED
from kvcore.schema import UserError

Label = Callable[[str, str], str]


class Transfer(NamedTuple):
    """One model at one budget.

    Attributes:
        model: Its name.
        asked: The budget, in words.
        delta_nll: Nats per token; rows: what bases and ranks are from, columns: what their cost was measured on,
            both in the same order; NaN where a cell is missing.
        not_converged: Rows whose spectra have not settled.
    """

    model: str
    asked: str
    delta_nll: pd.DataFrame
    not_converged: frozenset[str]

    @property
    def marked(self) -> pd.DataFrame:
        """`delta_nll` as a person reads it: with a mark at the names of rows that have not settled."""
        return self.delta_nll.rename(
            index=lambda name: f"{name}{NOT_CONVERGED}" if name in self.not_converged else name
        )


def transfers(cells: pd.DataFrame) -> Iterator[Transfer]:
    """Yield the transfer matrix of every model and budget.

    Args:
        cells: From `kvcore.results.collection.collect`; those whose gates failed are left out.

    Raises:
        UserError: No cell was evaluated on another dataset, or none truncates, two belong in one field, or a row has
            two bases, or a column several numbers of tokens.
    """
    cells = trusted(cells)
    if on_own_data(cells).all():
        raise UserError("no finished cell was evaluated on another dataset than its own, as experiment=transfer does")
    label = _label(cells)
    points = pd.concat([_points(cell, label) for _, cell in cells.iterrows()], ignore_index=True)
    if points.empty:
        raise UserError("no cell of this transfer matrix truncates anything: it needs a rank budget, not none")
    for (model, asked), group in points.groupby(["model", "asked"], sort=False):
        twice = group[group.duplicated(["basis", "evaluated"], keep=False)]
        if len(twice):
            raise UserError("these cells belong in one field of a transfer matrix:\n" + "\n".join(twice["path"]))
        for along, what, said in (
            ("basis", "spectrum_id", "bases were computed in several ways"),
            ("evaluated", "tokens", "cost was measured on several numbers of tokens"),
        ):
            several = group[group.groupby(along)[what].transform("nunique") > 1]
            if len(several):
                name = several[along].iloc[0]
                raise UserError(f"in one transfer matrix, for {name} the {said}:\n" + "\n".join(several["path"]))
        matrix = group.pivot(index="basis", columns="evaluated", values="delta_nll")
        names = sorted({*matrix.index, *matrix.columns})
        unsettled = frozenset(group.loc[~group["converged"], "basis"])
        yield Transfer(str(model), str(asked), matrix.reindex(index=names, columns=names), unsettled)


def draw_transfers(matrices: Iterable[Transfer], folder: Path) -> list[Path]:
    """Write transfer matrices as figures and as CSV, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for transfer in matrices:
        name = f"{transfer.model}-{transfer.asked}".replace(" ", "_").replace(",", "")
        table = folder / f"{name}.csv"
        transfer.delta_nll.to_csv(table)
        note = f" ({NOT_CONVERGED} not converged)" if transfer.not_converged else ""
        title = f"{transfer.model}, {transfer.asked}{note}"
        paths += [table, *figures.save_figure(figures.transfer_heatmap(transfer.marked, title), folder, name)]
    return paths


def _points(cell: "pd.Series[str]", label: Label) -> pd.DataFrame:
    names = ["asked", "delta_nll", "tokens"]
    points = cell_table(cell["path"], "perplexity", *names).iloc[1:][names]
    return points.assign(
        model=cell["model"],
        basis=label(cell["dataset"], cell["language"]),
        evaluated=label(cell["evaluated_on"], cell["evaluated_language"]),
        spectrum_id=cell["spectrum_id"],
        converged=cell["converged"],
        path=cell["path"],
    )


def _label(cells: pd.DataFrame) -> Label:
    """Return what names a row or column: its dataset, its language, or both, as is needed to tell them apart."""
    if len({*cells["language"], *cells["evaluated_language"]}) == 1:
        return lambda dataset, _: dataset
    if len({*cells["dataset"], *cells["evaluated_on"]}) == 1:
        return lambda _, language: language
    return lambda dataset, language: f"{dataset}, {language}"
