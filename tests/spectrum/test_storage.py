"""Spectra written and read back."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TEXTS, tiny_llama
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from kvcore import Measurement, measure
from kvcore.model.geometry import discover
from kvcore.spectrum.storage import is_complete, load_measurement, save_measurement, spectrum_bytes


@pytest.fixture
def measurement(tokenizer: PreTrainedTokenizerBase) -> Measurement:
    return measure(tiny_llama(), tokenizer, TEXTS)


def test_what_is_saved_comes_back(measurement: Measurement, tmp_path: Path) -> None:
    save_measurement(tmp_path / "abc", measurement, {"seed": 3})
    found = load_measurement(tmp_path / "abc")
    assert list(found.spectra) == list(measurement.spectra)
    for place, spectrum in measurement.spectra.items():
        assert torch.equal(found.spectra[place].singular_values, spectrum.singular_values)
        assert torch.allclose(found.spectra[place].right_singular_vectors, spectrum.right_singular_vectors, atol=1e-7)
        assert found.spectra[place].tokens == spectrum.tokens
    pd.testing.assert_frame_equal(found.layers, measurement.layers)
    pd.testing.assert_frame_equal(found.convergence, measurement.convergence)
    assert json.loads((tmp_path / "abc" / "spectrum.json").read_text())["content"] == {"seed": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


def test_names_and_precision_of_the_tensors(measurement: Measurement, tmp_path: Path) -> None:
    save_measurement(tmp_path / "abc", measurement, {})
    tensors = load_file(tmp_path / "abc" / "spectrum.safetensors")
    assert tensors["layers.2.value.singular_values"].shape == (16,)
    assert tensors["layers.2.value.singular_values"].dtype == torch.float64
    assert tensors["layers.0.key.right_singular_vectors"].shape == (16, 16)
    assert tensors["layers.0.key.right_singular_vectors"].dtype == torch.float32
    assert len(tensors) == 3 * 2 * 2


def test_the_size_is_known_beforehand(measurement: Measurement, tmp_path: Path) -> None:
    save_measurement(tmp_path / "abc", measurement, {})
    written = sum(file.stat().st_size for file in (tmp_path / "abc").glob("*.safetensors"))
    assert spectrum_bytes(discover(tiny_llama())) <= written <= spectrum_bytes(discover(tiny_llama())) + 4096


def test_a_folder_completed_by_another_process_is_kept(measurement: Measurement, tmp_path: Path) -> None:
    save_measurement(tmp_path / "abc", measurement, {"by": "first"})
    save_measurement(tmp_path / "abc", measurement, {"by": "second"})
    assert json.loads((tmp_path / "abc" / "spectrum.json").read_text())["content"] == {"by": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


def test_a_failed_write_leaves_nothing_behind(measurement: Measurement, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_measurement(tmp_path / "abc", measurement, {"not": {"a", "JSON", "value"}})
    assert not is_complete(tmp_path / "abc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["spectrum.safetensors", "convergence.parquet", "spectrum.json"])
@pytest.mark.parametrize("damage", ["truncated", "removed", "garbage"])
def test_damaged_files_are_refused(measurement: Measurement, tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "abc"
    save_measurement(folder, measurement, {})
    file = folder / name
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:40] if damage == "truncated" else b"no such format")
    with pytest.raises(ValueError, match="delete that folder"):
        load_measurement(folder)


def test_another_schema_version_is_refused(measurement: Measurement, tmp_path: Path) -> None:
    save_measurement(tmp_path / "abc", measurement, {})
    summary = tmp_path / "abc" / "spectrum.json"
    summary.write_text(summary.read_text().replace('"schema_version": 2', '"schema_version": 3'))
    with pytest.raises(ValueError, match="schema version 3, expected 2"):
        load_measurement(tmp_path / "abc")
