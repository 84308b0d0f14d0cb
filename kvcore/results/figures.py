"""Figures of one cell, of transfers and of correlations."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kvcore.cell import replacing

if TYPE_CHECKING:  # torch takes seconds, which figures of many cells need not wait for
    from kvcore.compression.allocation import Allocation, KvDims
    from kvcore.model.geometry import Kind

COLUMN_WIDTH = 3.5  # inches: one column of a two-column page
FORMATS = ("png", "pdf")


def layerwise_ner(layers: pd.DataFrame, title: str) -> Figure:
    """Draw the normalized effective rank of keys and values over the layers; open markers: not converged.

    Args:
        layers: The layer table.
        title: What was measured on what.
    """
    with drawing(title, height=2.4) as (figure, axes):
        palette = dict(zip(("key", "value"), seaborn.color_palette("colorblind"), strict=False))
        seaborn.lineplot(layers, x="layer", y="ner", hue="kind", style="kind", palette=palette, ax=axes)
        for (kind, converged), points in layers.groupby(["kind", "converged"]):
            color = palette[str(kind)]
            face = color if converged else "white"
            axes.plot(points["layer"], points["ner"], "o", markersize=3, color=color, markerfacecolor=face)
        axes.set(xlabel="layer", ylabel="NER (effective rank / kv_dim)", ylim=(0, 1))
        axes.legend(title=None)
    return figure


def perplexity_heatmap(surface: pd.DataFrame, title: str) -> Figure:
    """Draw perplexity over (key ratio, value ratio), coloured by its growth over the untruncated model.

    Args:
        surface: The perplexity table.
        title: What was measured on what.
    """
    with drawing(title, height=2.9) as (figure, axes):
        seaborn.heatmap(
            over_ratios(surface, surface["delta_nll"]),
            annot=over_ratios(surface, surface["perplexity"]).map(_short),
            fmt="",
            annot_kws={"fontsize": 6},
            cmap="cividis_r",
            cbar_kws={"label": "delta NLL (nats per token)"},
            ax=axes,
        )
        axes.set(xlabel="value rank ratio", ylabel="key rank ratio")
    return figure


def score_heatmap(scores: pd.DataFrame, title: str) -> Figure:
    """Draw the mean GPT-score over (key ratio, value ratio), with the number of answers it is the mean of.

    Args:
        scores: The score table.
        title: What was measured on what.
    """
    points = scores[scores["key_ratio"].notna()]
    counts = points["score"].map("{:.2f}".format) + points["judged"].map("\nn={}".format)
    with drawing(title, height=2.9) as (figure, axes):
        seaborn.heatmap(
            over_ratios(points, points["score"]),
            annot=over_ratios(points, counts).fillna(""),
            fmt="",
            annot_kws={"fontsize": 6},
            vmin=1,
            vmax=10,
            cmap="cividis",
            cbar_kws={"label": "mean score of the judge (1 to 10)"},
            ax=axes,
        )
        axes.set(xlabel="value rank ratio", ylabel="key rank ratio")
    return figure


def over_ratios(points: pd.DataFrame, values: "pd.Series[Any]") -> pd.DataFrame:
    """Lay values of points out by key ratio (down) and value ratio (across), the largest first."""
    table = points.assign(shown=values).pivot(index="key_ratio", columns="value_ratio", values="shown")
    return table.sort_index(ascending=False).sort_index(axis=1, ascending=False)


def transfer_heatmap(delta_nll: pd.DataFrame, title: str) -> Figure:
    """Draw a transfer matrix; a frame marks the diagonal, where bases and evaluation are of one dataset.

    Args:
        delta_nll: Rows: what bases and ranks are from, columns: what their cost was measured on, in the same order.
        title: Which model, at which budget.
    """
    name = 0.06 * max(map(len, map(str, delta_nll.index)))  # inches
    with drawing(title, height=1.6 + 0.28 * len(delta_nll) + 0.7 * name) as (figure, axes):
        figure.set_figwidth(max(COLUMN_WIDTH, 0.5 + 0.4 * len(delta_nll) + name))
        seaborn.heatmap(
            delta_nll,
            annot=True,
            fmt=".3f",
            annot_kws={"fontsize": 6},
            cmap="cividis_r",
            cbar_kws={"label": "delta NLL (nats per token)", "location": "top", "aspect": 30},
            ax=axes,
        )
        for place in range(len(delta_nll)):
            axes.add_patch(Rectangle((place, place), 1, 1, fill=False, edgecolor="black", linewidth=1.5))
        axes.set(xlabel="evaluated on", ylabel="bases and ranks from")
        axes.set_xticklabels(axes.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="y", rotation=0)
    return figure


def cost_against_ner(points: pd.DataFrame, cost: str, label: str) -> Figure:
    """Draw a cost over the normalized effective rank of keys and of values, a line with its 95 % band for each model.

    Bars are 95 % intervals over examples; the longest are cut, so that the points can be told apart.

    Args:
        points: One row for each cell: model, ner_key, ner_value, the cost with `_low` and `_high`.
        cost: Name of its column.
        label: What it is, for the axis.
    """
    models = list(dict.fromkeys(points["model"]))
    looks = dict(zip(models, zip(cycle(seaborn.color_palette("colorblind")), cycle("osD^vP*")), strict=False))
    with style():
        figure = Figure(figsize=(COLUMN_WIDTH, 4.4), layout="constrained")
        for axes, kind in zip(figure.subplots(2, sharey=True), ("key", "value"), strict=True):
            for model, group in points.groupby("model", sort=False):
                x, y = group[f"ner_{kind}"], group[cost]
                color, marker = looks[str(model)]
                spread = [(y - group[f"{cost}_low"]).clip(0), (group[f"{cost}_high"] - y).clip(0)]  # rounded: below 0
                axes.errorbar(x, y, spread, fmt=marker, markersize=3, linewidth=0.6, color=color, label=model)
                seaborn.regplot(x=x, y=y, ax=axes, scatter=False, color=color, seed=0, line_kws={"linewidth": 1})
            axes.set(xlabel=f"NER of {kind}s, mean over layers", ylabel=label)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=6)
        room = float(points[cost].max() - points[cost].min()) or 1.0
        axes.set_ylim(float(points[cost].min()) - 0.5 * room, float(points[cost].max()) + 0.5 * room)
    return figure


def layerwise_ranks(allocations: "Sequence[Allocation]", kv_dims: "KvDims", title: str) -> Figure:
    """Draw the share of its dimensions that each layer keeps under each allocation, keys above values.

    Of a grid, whose keys and values are truncated on their own, a line is a rank ratio.

    Args:
        allocations: What to draw.
        kv_dims: kv_dim by layer and kind.
        title: What was measured on what.
    """
    rows = [
        {"layer": place.layer, "kind": f"{place.kind}s", "kept": rank / kv_dims[place],
         "budget": _asked(allocation, place.kind)}
        for allocation in allocations
        for place, rank in allocation.ranks.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows).drop_duplicates()
    labels = list(table["budget"].unique())
    with style():
        figure = Figure(figsize=(COLUMN_WIDTH, 3.6), layout="constrained")
        figure.suptitle(title)
        upper, lower = figure.subplots(2, sharex=True, sharey=True)
        palette = seaborn.color_palette("viridis", len(labels))
        for axes, kind in ((upper, "keys"), (lower, "values")):
            part = table[table["kind"] == kind]
            seaborn.lineplot(
                part,
                x="layer",
                y="kept",
                hue="budget",
                hue_order=labels,
                palette=palette,
                drawstyle="steps-mid",
                ax=axes,
                legend=axes is upper,
            )
            axes.set(xlabel="layer", ylabel=f"rank / kv_dim of {kind}", ylim=(0, 1.05))
        handles, labels = upper.get_legend_handles_labels()
        upper.get_legend().remove()  # where it would hide a line
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=6)
    return figure


def _asked(allocation: "Allocation", kind: "Kind") -> str:
    ratio = allocation.key_ratio if kind == "key" else allocation.value_ratio
    return allocation.asked if ratio is None else f"rank ratio {ratio:g}"


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and as vector graphics, each in one step, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in FORMATS]
    figure.draw_without_rendering()  # which lays it out, once for all formats
    figure.set_layout_engine(None)  # a placeholder would have savefig draw everything twice
    for path in paths:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=200, format=path.suffix[1:])
    return paths


@contextmanager
def drawing(title: str, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Draw with the house fonts, whatever the user's own settings of matplotlib are."""
    with style():
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        figure.suptitle(title)
        yield figure, figure.add_subplot()


def style() -> AbstractContextManager[None]:
    """Return the house fonts; a dollar sign in a name begins no formula."""
    return matplotlib.rc_context({"font.size": 7, "axes.labelsize": 8, "figure.titlesize": 8, "text.parse_math": False})


def _short(perplexity: float) -> str:
    return f"{perplexity:#.3g}".rstrip(".") if perplexity < 1e4 else f"{perplexity:.0e}"
