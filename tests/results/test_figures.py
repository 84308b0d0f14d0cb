"""Figures show the numbers they were given."""

from pathlib import Path

import pandas as pd
import pytest

from kvcore.compression.allocation import Allocation
from kvcore.model.geometry import LayerKind
from kvcore.results import figures


@pytest.fixture
def layers() -> pd.DataFrame:
    rows = [
        {"layer": layer, "kind": kind, "ner": ner + layer / 10, "converged": layer > 0}
        for layer in range(3)
        for kind, ner in (("key", 0.2), ("value", 0.5))
    ]
    return pd.DataFrame(rows)


def test_layerwise_ner_draws_keys_and_values(layers: pd.DataFrame) -> None:
    axes = figures.layerwise_ner(layers, "model on data").axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert [list(line.get_ydata()) for line in lines] == [
        pytest.approx([0.2, 0.3, 0.4]),
        pytest.approx([0.5, 0.6, 0.7]),
    ]
    assert axes.get_xlabel() == "layer"
    assert "kv_dim" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["key", "value"]
    open_markers = [line for line in axes.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in open_markers] == [[0], [0]]  # not converged


def test_heatmap_writes_perplexity_where_it_was_measured() -> None:
    surface = pd.DataFrame(
        [
            {"key_ratio": 1.0, "value_ratio": 1.0, "perplexity": 10.0, "delta_nll": 0.0},
            {"key_ratio": 1.0, "value_ratio": 0.5, "perplexity": 20.0, "delta_nll": 0.69},
            {"key_ratio": 0.5, "value_ratio": 1.0, "perplexity": 123456.0, "delta_nll": 9.4},
            {"key_ratio": 0.5, "value_ratio": 0.5, "perplexity": float("inf"), "delta_nll": 800.0},
        ]
    )
    axes = figures.perplexity_heatmap(surface, "model on data").axes[0]
    assert [text.get_text() for text in axes.texts] == ["10.0", "20.0", "1e+05", "inf"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1.0", "0.5"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1.0", "0.5"]


def test_figures_are_saved_as_image_and_vector_graphics(layers: pd.DataFrame, tmp_path: Path) -> None:
    paths = figures.save_figure(figures.layerwise_ner(layers, "t"), tmp_path / "figures", "ner")
    assert [path.name for path in paths] == ["ner.png", "ner.pdf"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")


def test_scores_are_drawn_with_their_counts() -> None:
    scores = pd.DataFrame(
        [
            {"key_ratio": 1.0, "value_ratio": 1.0, "score": 7.25, "judged": 8},
            {"key_ratio": 1.0, "value_ratio": 0.5, "score": 6.0, "judged": 7},
            {"key_ratio": 0.5, "value_ratio": 1.0, "score": 1.5, "judged": 8},
            {"key_ratio": float("nan"), "value_ratio": float("nan"), "score": 9.0, "judged": 2},  # an anchor
        ]
    )
    axes = figures.score_heatmap(scores, "model on data").axes[0]
    assert [text.get_text() for text in axes.texts] == ["7.25\nn=8", "6.00\nn=7", "1.50\nn=8"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1.0", "0.5"]


def test_ranks_are_drawn_as_shares_of_their_layer() -> None:
    kv_dims = {LayerKind(layer, kind): 8 for layer in range(2) for kind in ("key", "value")}
    allocations = [
        Allocation("waterfill", "waterfill 0.5", dict(zip(kv_dims, (2, 6, 4, 8), strict=True)), budget=0.5),
        Allocation("waterfill", "waterfill 0.25", dict(zip(kv_dims, (1, 3, 1, 3), strict=True)), budget=0.25),
    ]
    figure = figures.layerwise_ranks(allocations, kv_dims, "model on data")
    keys, values = figure.axes
    assert [list(line.get_ydata()) for line in keys.lines if len(line.get_ydata())] == [[0.25, 0.5], [0.125, 0.125]]
    assert [list(line.get_ydata()) for line in values.lines if len(line.get_ydata())] == [[0.75, 1.0], [0.375, 0.375]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["waterfill 0.5", "waterfill 0.25"]


def test_ranks_of_a_grid_are_a_line_for_each_ratio() -> None:
    kv_dims = {LayerKind(layer, kind): 8 for layer in range(2) for kind in ("key", "value")}
    allocations = [
        Allocation("grid", "", {place: 8 * ratios[place.kind] for place in kv_dims}, ratios["key"], ratios["value"])
        for ratios in ({"key": 1, "value": 0.5}, {"key": 0.5, "value": 1}, {"key": 0.5, "value": 0.25})
    ]
    figure = figures.layerwise_ranks(allocations, kv_dims, "model on data")
    keys, values = figure.axes
    drawn = [[list(line.get_ydata()) for line in axes.lines if len(line.get_ydata())] for axes in (keys, values)]
    assert drawn == [[[1.0, 1.0], [0.5, 0.5]], [[1.0, 1.0], [0.5, 0.5], [0.25, 0.25]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        f"rank ratio {ratio}" for ratio in ("1", "0.5", "0.25")
    ]


def test_costs_are_drawn_over_keys_and_values_of_each_model() -> None:
    points = pd.DataFrame(
        {
            "model": ["a"] * 3 + ["b"] * 3,
            "ner_key": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
            "ner_value": [0.5, 0.6, 0.7, 0.6, 0.7, 0.9],
            "nd_ppl": [1.0, 0.5, 0.2, 2.0, 1.0, 0.5],
        }
    )
    points = points.assign(nd_ppl_low=points["nd_ppl"] - 0.1, nd_ppl_high=points["nd_ppl"] + 50)
    points.loc[0, "nd_ppl_low"] = points["nd_ppl"][0] + 1e-15  # where all examples agree, but for rounding
    keys, values = figures.cost_against_ner(points, "nd_ppl", "ND-PPL").axes
    for axes, column in ((keys, "ner_key"), (values, "ner_value")):
        drawn = [line for line in axes.lines if str(line.get_marker()) in "os"]
        assert [list(line.get_xdata()) for line in drawn] == [list(points[column][:3]), list(points[column][3:])]
        assert [list(line.get_ydata()) for line in drawn] == [[1.0, 0.5, 0.2], [2.0, 1.0, 0.5]]
    assert keys.get_ylim()[1] < 10  # the longest bars are cut
    assert keys.get_ylabel() == "ND-PPL"
