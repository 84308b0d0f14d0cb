"""Figures show the numbers they were given."""

from pathlib import Path

import pandas as pd
import pytest

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
