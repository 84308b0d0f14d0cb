"""Which cells can stand in one table: their settings agree where they should."""

from collections import Counter
from collections.abc import Iterator

import pandas as pd

from kvcore.results.collection import SPECTRUM_SETTINGS, Problem
from kvcore.results.record import FINISHED

FIELD = ["model", "dataset", "language"]
# The settings that all cells with the same values of these columns should share.
_AGREEING = {
    (): ("capture.point", "capture.skip_first_tokens"),
    ("model",): ("model.revision", "model.dtype", "model.attention", "model.template"),
    ("dataset", "language"): tuple(
        name for name in SPECTRUM_SETTINGS if name.startswith("dataset.") or name in ("evaluation.share", "seed")
    ),
}


def comparable(cells: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Leave out the cells that cannot be compared with the others.

    These are all cells of a field (model, dataset, language) with several spectra. Of the others, where a setting of a
    model, of a dataset and language, or of how keys and values are captured does not agree, those that differ from more
    than half of the spectra, or all, where no value is that of more than half.

    Args:
        cells: From `kvcore.results.collection.collect`.

    Returns:
        The cells that are left, and a problem for each spectrum that is not.
    """
    problems: list[Problem] = []
    if cells.empty:
        return cells, problems
    for _, group in _spectra(cells).groupby(FIELD):
        if len(group) > 1:
            problems += list(_in_one_field(group))
    cells = _without(cells, problems)
    for columns, names in _AGREEING.items():
        for name in names:
            found = list(_disagreeing(_spectra(cells), list(columns), name))
            problems += found
            cells = _without(cells, found)
    return cells, problems


def one_a_spectrum(cells: pd.DataFrame) -> pd.DataFrame:
    """Return one cell for each spectrum, one whose gates passed where there is one."""
    first = cells.assign(untrusted=cells["status"] != FINISHED).sort_values("untrusted", kind="stable")
    return _spectra(first).drop(columns="untrusted").sort_index()


def _spectra(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.drop_duplicates([*FIELD, "spectrum_id"])


def _without(cells: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    culprits = cells[cells["path"].isin([problem.path for problem in problems])]
    if culprits.empty:
        return cells
    fields = pd.MultiIndex.from_frame(cells[FIELD])
    return cells[~fields.isin(pd.MultiIndex.from_frame(culprits[FIELD]))]


def _in_one_field(group: pd.DataFrame) -> Iterator[Problem]:
    """Say what the spectra of one field differ in, and how to tell them apart."""
    values = {name: list(dict.fromkeys(group[name].map(str))) for name in SPECTRUM_SETTINGS}
    differing = "; ".join(f"{name} is {' or '.join(found)}" for name, found in values.items() if len(found) > 1)
    for path in group["path"]:
        others = ", ".join(other for other in group["path"] if other != path)
        yield Problem(
            path,
            f"left out: it belongs in one field of the table with {others} ({differing or 'other settings differ'}); "
            "give one of them another model.name or dataset.name, or an output_root of its own",
        )


def _disagreeing(spectra: pd.DataFrame, columns: list[str], name: str) -> Iterator[Problem]:
    """Name the spectra that differ in a setting from most of those with the same values in the columns."""
    groups = spectra.groupby(columns) if columns else [((), spectra)]
    for names, group in groups:
        key = ", ".join(map(str, names))
        values = group[name].map(str)
        if values.nunique() < 2:
            continue
        (usual, count), *_ = Counter(values).most_common()
        whole = f"those of {key}" if key else "all"
        said = f"{count} of {whole} have {usual}"
        if count <= len(group) / 2:
            usual, said = "", f"{whole} should have the same, and not {' and '.join(sorted(set(values)))}"
        for path, value in zip(group["path"], values, strict=True):
            if value != usual:
                yield Problem(path, f"left out: {name} = {value}, while {said}")
