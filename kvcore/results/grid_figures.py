"""Figures of many cells of one model, from what they left on disk."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvcore.results import figures
from kvcore.results.agreement import one_a_spectrum
from kvcore.results.collection import Problem, cell_table, on_own_data, trusted
from kvcore.results.correlation import COSTS
from kvcore.schema import UserError

_MOST_LINES = 20
_LONG_LABEL = 16  # letters: three such labels do not fit beside each other
_LOOKS: tuple[tuple[Any, str], ...] = (("solid", ""), ((0, (4, 1.5)), "o"), ((0, (1, 1)), "^"))  # dashes, marker
_ENGLISH = "english"
_FEWEST_TO_FIT = 3
_DRAWN = {
    "layers": ("layer", "kind", "ner"),
    "perplexity": ("key_ratio", "value_ratio", "perplexity", "delta_nll"),
    "scores": ("key_ratio", "value_ratio", "score", "judged"),
}
_COSTS = {"nd_ppl": "grid_mean_nd_ppl", "gpt_score": "grid_mean_score"}


def draw_grid(cells: pd.DataFrame, folder: Path) -> tuple[list[Path], list[Problem]]:
    """Draw NER over layers by dataset and by language, cost over ratios for each model, and NER against cost.

    Args:
        cells: From `kvcore.results.agreement.comparable`; those whose gates failed are left out.
        folder: Where the figures go; figures of an earlier call that are not drawn again are removed.

    Returns:
        What was written, and the tables that could not be read.
    """
    cells, problems = trusted(cells), list[Problem]()
    written = [
        path
        for name, figure in [
            *_layerwise(cells, problems),
            *_over_ratios(cells, problems),
            *_against_ner(cells, problems),
        ]
        for path in figures.save_figure(figure, folder, re.sub(r"[^\w.-]+", "_", name))
    ]
    clear_figures(folder, but=written)
    return written, problems


def clear_figures(folder: Path, *, but: Sequence[Path] = ()) -> None:
    """Remove figures of an earlier call, which may be of other cells."""
    for ending in figures.FORMATS:
        for path in set(folder.glob(f"*.{ending}")) - set(but):
            path.unlink()


def layerwise_ner(layers: pd.DataFrame, title: str) -> Figure:
    """Draw NER over the layers, keys above values: a line for each label, the highest first.

    Args:
        layers: Columns layer, kind, ner, label; of more than 20 labels, the median and the range are drawn.
        title: What they are of.
    """
    labels = list(layers.groupby("label")["ner"].mean().sort_values(ascending=False).index)
    many = len(labels) > _MOST_LINES
    columns = 2 if max(map(len, labels)) > _LONG_LABEL else 3
    with figures.style():
        height = 4.2 + (0 if many else 0.13 * -(-len(labels) // columns))
        figure = Figure(figsize=(figures.COLUMN_WIDTH, height), layout="constrained")
        figure.suptitle(title)
        panels = figure.subplots(2, sharex=True)
        for axes, kind in zip(panels, ("key", "value"), strict=True):
            part = layers[layers["kind"] == kind]
            if many:
                seaborn.lineplot(part, x="layer", y="ner", estimator="median", errorbar=("pi", 100), ax=axes)
            else:
                _draw_lines(axes, part, labels)
            axes.set(xlabel="layer", ylabel=f"NER of {kind}s (rank / kv_dim)")
        panels[0].set_xlabel("")
        if many:
            panels[1].set_xlabel(f"layer (line: median of {len(labels)}; band: their range)")
        else:
            handles = panels[0].get_lines()
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=6, handlelength=3.5)
    return figure


def _draw_lines(axes: Axes, layers: pd.DataFrame, labels: Sequence[str]) -> None:
    """Draw a line for each label, told apart by colour, and where colours repeat by dashes and markers."""
    colors = seaborn.color_palette("colorblind", 8)[:7]  # the eighth is grey
    for number, label in enumerate(labels):
        line = layers[layers["label"] == label]
        dashes, marker = _LOOKS[number // len(colors)]
        axes.plot(
            line["layer"],
            line["ner"],
            color=colors[number % len(colors)],
            linestyle=dashes,
            linewidth=0.8,
            marker=marker,
            markersize=3,
            markevery=(number % 4, 4),
        )


def _layerwise(cells: pd.DataFrame, problems: list[Problem]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures by dataset (in English), and by language (of each dataset with several), for each model."""
    spectra = one_a_spectrum(cells)
    english = spectra["language"] == _ENGLISH
    sets = [("datasets", "in English", "dataset", spectra[english])]
    for dataset, group in spectra.groupby("dataset"):
        sets.append((f"{dataset}-languages", f"on {dataset}", "language", group))
    for by, said, column, chosen in sets:
        for model, group in chosen.groupby("model"):
            if len(group) > 1:
                names = group[column] + group["converged"].map({True: "", False: " (not converged)"})
                tables = _tables(group.assign(label=names), "layers", problems)
                if tables:
                    yield f"layerwise_ner-{model}-{by}", layerwise_ner(pd.concat(tables), f"{model} {said}")


def _over_ratios(cells: pd.DataFrame, problems: list[Problem]) -> Iterator[tuple[str, Figure]]:
    """Yield perplexity and scores over the grid of each model, means over its datasets and languages."""
    grid = _own_grid(cells)
    for model, group in grid.groupby("model"):
        if (ways := group["surface"].unique()).size > 1:
            reason = f"costs of {model} were measured in several ways, no mean over them is drawn: {'; '.join(ways)}"
            problems.append(Problem(str(group["path"].iloc[0]), reason))
            continue
        points = _tables(group, "perplexity", problems)
        title = f"perplexity of {model}\ngeometric mean over {len(points)} datasets and languages"
        if points:
            yield f"perplexity_heatmap-{model}", figures.perplexity_heatmap(_mean_perplexity(pd.concat(points)), title)
        scores = _tables(group[group["judged"]], "scores", problems)
        if scores:
            title = f"GPT-score of {model}\nmean over {len(scores)} datasets and languages"
            yield f"score_heatmap-{model}", figures.score_heatmap(_mean_scores(pd.concat(scores)), title)


def _mean_perplexity(points: pd.DataFrame) -> pd.DataFrame:
    """Return the geometric mean of perplexity, and the mean of delta NLL, which is its logarithm."""
    logarithms = points.assign(perplexity=np.log(points["perplexity"]))
    means = logarithms.groupby(["key_ratio", "value_ratio"])[["perplexity", "delta_nll"]].mean()
    return means.assign(perplexity=np.exp(means["perplexity"])).reset_index()


def _mean_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of the datasets' mean scores, and how many answers were judged."""
    at = scores.dropna(subset=["key_ratio", "score"]).groupby(["key_ratio", "value_ratio"])
    return at.agg(score=("score", "mean"), judged=("judged", "sum")).reset_index()


def _against_ner(cells: pd.DataFrame, problems: list[Problem]) -> Iterator[tuple[str, Figure]]:
    """Yield each cost over NER, for the models with enough cells."""
    for cost, column in _COSTS.items():
        points = _own_grid(cells).rename(columns={f"{column}{end}": f"{cost}{end}" for end in ("", "_low", "_high")})
        points = points[np.isfinite(points[cost])]
        points = points.groupby("model").filter(lambda group: len(group) >= _FEWEST_TO_FIT)
        if (ways := points["surface"].unique()).size > 1:
            reason = f"{cost} was measured in several ways, it is not drawn against NER: {'; '.join(ways)}"
            problems.append(Problem(str(points["path"].iloc[0]), reason))
        elif len(points):
            yield f"{cost}_against_ner", figures.cost_against_ner(points, cost, COSTS[cost])


def _own_grid(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells with a grid, evaluated on their own data; of several of one spectrum, a judged one."""
    grid = cells[on_own_data(cells) & (cells["rank_budget"] == "grid")]
    return one_a_spectrum(grid.sort_values("judged", ascending=False, kind="stable"))


def _tables(cells: pd.DataFrame, name: str, problems: list[Problem]) -> list[pd.DataFrame]:
    """Read a table of every cell, with the cell's label where it has one; those that cannot be read are one problem."""
    tables, failures = [], []
    for cell in cells.itertuples():
        try:
            tables.append(cell_table(str(cell.path), name, *_DRAWN[name]).assign(label=getattr(cell, "label", "")))
        except UserError as error:
            failures.append(Problem(str(cell.path), f"is missing in a figure: {error}"))
    if failures:
        more = f"; so are {len(failures) - 1} other cells of the model" if len(failures) > 1 else ""
        problems.append(Problem(failures[0].path, failures[0].reason + more))
    return tables
