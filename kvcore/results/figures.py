"""Figures of one cell."""

from pathlib import Path

import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN_WIDTH = 3.5  # inches: one column of a two-column page
FORMATS = ("png", "pdf")


def layerwise_ner(layers: pd.DataFrame, title: str) -> Figure:
    """Draw the normalized effective rank of keys and values over the layers; open markers: not converged.

    Args:
        layers: The layer table.
        title: What was measured on what.
    """
    figure, axes = _figure(height=2.4)
    seaborn.lineplot(layers, x="layer", y="ner", hue="kind", style="kind", palette="colorblind", legend=True, ax=axes)
    for kind, color in zip(("key", "value"), seaborn.color_palette("colorblind"), strict=False):
        chosen = layers[layers["kind"] == kind]
        for converged, face in ((True, color), (False, "white")):
            points = chosen[chosen["converged"] == converged]
            axes.plot(points["layer"], points["ner"], "o", markersize=3, color=color, markerfacecolor=face)
    axes.set(xlabel="layer", ylabel="NER (effective rank / kv_dim)", ylim=(0, 1))
    axes.legend(title=None)
    return _titled(figure, title)


def perplexity_heatmap(surface: pd.DataFrame, title: str) -> Figure:
    """Draw perplexity over (key ratio, value ratio), coloured by its growth over the untruncated model.

    Args:
        surface: The perplexity table.
        title: What was measured on what.
    """

    def pivot(column: str) -> pd.DataFrame:
        table = surface.pivot_table(index="key_ratio", columns="value_ratio", values=column)
        return table.sort_index(ascending=False).sort_index(axis=1, ascending=False)

    figure, axes = _figure(height=2.9)
    labels = pivot("perplexity").map(lambda value: f"{value:.3g}" if value < 1e4 else f"{value:.0e}")
    seaborn.heatmap(
        pivot("delta_nll"),
        annot=labels,
        fmt="",
        annot_kws={"fontsize": 6},
        cmap="cividis_r",
        cbar_kws={"label": "delta NLL (nats per token)"},
        ax=axes,
    )
    axes.set(xlabel="value rank ratio", ylabel="key rank ratio")
    return _titled(figure, title)


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and as vector graphics and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in FORMATS]
    for path in paths:
        figure.savefig(path, dpi=200)
    return paths


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(labelsize=7)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    return figure, axes


def _titled(figure: Figure, title: str) -> Figure:
    figure.suptitle(title, fontsize=8)
    return figure
