"""The published table: datasets and languages as rows, models and keys or values as columns."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from kvcore.results.agreement import one_a_spectrum
from kvcore.results.record import FINISHED

NOT_CONVERGED, GATE_FAILED = "*", "†"
LEGEND = {NOT_CONVERGED: "not converged: fewer than 20 tokens per dimension", GATE_FAILED: "a gate failed: not trusted"}
STYLES = {"lowest_of_row": "bold: the lowest of its row", "lowest_of_column": "italic: the lowest of its column"}
_MISSING = "-"
_ROWS, _COLUMNS = ["dataset", "language"], ["model", "kind"]
_TEX = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}"} | {letter: f"\\{letter}" for letter in "&%$#_{}"}


def ner_fields(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the fields of the table.

    Args:
        cells: From `kvcore.results.agreement.comparable`.

    Returns:
        Columns dataset, language, model, kind (`K` or `V`), ner, mark (`*`: not converged, `†`: a gate failed),
        lowest_of_row and lowest_of_column (of its kind, among several that are not marked).
    """
    spectra = one_a_spectrum(cells)
    marks = spectra["converged"].map({True: "", False: NOT_CONVERGED})
    marks += spectra["status"].eq(FINISHED).map({True: "", False: GATE_FAILED})
    fields = (
        spectra.assign(mark=marks)
        .rename(columns={"ner_key": "K", "ner_value": "V"})
        .melt([*_ROWS, "model", "mark"], ["K", "V"], var_name="kind", value_name="ner")
        .sort_values([*_ROWS, *_COLUMNS], ignore_index=True)
    )
    unmarked = fields[fields["mark"] == ""]
    for name, line in (("lowest_of_row", [*_ROWS, "kind"]), ("lowest_of_column", _COLUMNS)):
        among = unmarked.groupby(line)["ner"]
        lowest = (unmarked["ner"] == among.transform("min")) & (among.transform("size") > 1)
        fields[name] = lowest.reindex(fields.index, fill_value=False)
    return fields[[*_ROWS, *_COLUMNS, "ner", "mark", "lowest_of_row", "lowest_of_column"]]


def laid_out(fields: pd.DataFrame, written: Callable[[Any], str], missing: str = _MISSING) -> pd.DataFrame:
    """Lay the fields out: rows (dataset, language), columns (model, kind).

    Args:
        fields: From `ner_fields`.
        written: Turns a row of them into text.
        missing: What stands where there is no cell.
    """
    texts = fields.assign(text=[written(field) for field in fields.itertuples()])
    return texts.pivot(index=_ROWS, columns=_COLUMNS, values="text").fillna(missing).sort_index(axis=1)


def notes(fields: pd.DataFrame) -> list[str]:
    """Return what the marks in the table mean."""
    marks = [f"{mark} {text}" for mark, text in LEGEND.items() if fields["mark"].str.contains(mark, regex=False).any()]
    return [*marks, *(text for name, text in STYLES.items() if fields[name].any())]


def as_csv(fields: pd.DataFrame) -> str:
    """Return the table with all digits, and a column of marks for each model; a missing cell is an empty field."""
    numbers = laid_out(fields, lambda field: repr(field.ner), missing="")
    marks = laid_out(fields[fields["kind"] == "K"].assign(kind="mark"), lambda field: field.mark, missing="")
    table = numbers.join(marks).sort_index(axis=1)
    return table.set_axis([" ".join(column) for column in table.columns], axis=1).to_csv()


def as_markdown(fields: pd.DataFrame) -> str:
    """Return the table in GitHub's Markdown."""

    def written(field: Any) -> str:  # noqa: ANN401 - a row
        around = "**" * field.lowest_of_row + "_" * field.lowest_of_column
        return f"{around}{field.ner:.3f}{around[::-1]}" + str(field.mark).replace(NOT_CONVERGED, r"\*")

    table = laid_out(fields, written)
    lines = [
        [*_ROWS, *(" ".join(column) for column in table.columns)],
        ["---", "---", *["---:"] * len(table.columns)],
        *([*labels, *texts] for labels, texts in zip(table.index, table.to_numpy(), strict=True)),
    ]
    rows = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
    below = [note.replace(NOT_CONVERGED, r"\*") for note in notes(fields)]
    return "\n".join([*rows, "", "  \n".join(below)]).rstrip() + "\n"


def as_latex(fields: pd.DataFrame) -> str:
    r"""Return the table as LaTeX, to be read by \input; it needs the package booktabs."""

    def written(field: Any) -> str:  # noqa: ANN401 - a row
        text = f"{field.ner:.3f}"
        text = rf"\textit{{{text}}}" if field.lowest_of_column else text
        text = rf"\textbf{{{text}}}" if field.lowest_of_row else text
        return text + _tex_marks(field.mark)

    table = laid_out(fields, written, missing="--")
    models, kinds = (list(table.columns.get_level_values(level)) for level in _COLUMNS)
    models = list(dict.fromkeys(models))
    columns = range(3, 3 + 2 * len(models), 2)
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{ll{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(["", "", *(rf"\multicolumn{{2}}{{c}}{{{_tex(model)}}}" for model in models)]) + r" \\",
        " ".join(rf"\cmidrule(lr){{{column}-{column + 1}}}" for column in columns),
        " & ".join([*_ROWS, *kinds]) + r" \\",
        r"\midrule",
    ]
    for labels, texts in zip(table.index, table.to_numpy(), strict=True):
        lines.append(" & ".join([*map(_tex, labels), *texts]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, *(rf"% {note}" for note in notes(fields))]) + "\n"


def _tex_marks(mark: str) -> str:
    symbols = mark.replace(GATE_FAILED, r"\dagger")
    return f"$^{{{symbols}}}$" if mark else ""


def _tex(name: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in name)
