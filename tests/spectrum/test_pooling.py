"""Pooled spectra: the same as if all the data had been measured at once."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TEXTS, byte_tokenizer, tiny_cell, tiny_llama
from scripts import call

from kvcore import measure
from kvcore.pipeline import run_cell
from kvcore.schema import UserError
from kvcore.spectrum.pooling import pool
from kvcore.spectrum.storage import load_measurement


@pytest.fixture
def parts(tiny_folder: Path, tmp_path: Path) -> list[Path]:
    """Three spectra, each of some of the texts."""
    folders = []
    for name, texts in (("a", TEXTS[:3]), ("b", TEXTS[3:5]), ("c", TEXTS[5:])):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        settings = tiny_cell(tiny_folder, data, tmp_path / "outputs", f"dataset.name={name}")
        record = json.loads(run_cell(settings).read_text())
        folders.append(tmp_path / "outputs" / "spectra" / record["spectrum_id"])
    return folders


def test_a_pool_is_the_spectrum_of_the_union(parts: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    pooled = load_measurement(pool(parts, root))
    together = measure(tiny_llama(), byte_tokenizer(), TEXTS)
    for place, spectrum in together.spectra.items():
        found = pooled.spectra[place]
        assert found.tokens == spectrum.tokens
        assert torch.allclose(found.singular_values, spectrum.singular_values, rtol=1e-5)
    assert (pooled.layers["ner"] - together.layers["ner"]).abs().max() < 1e-8
    assert (pooled.heads["ner"] - together.heads["ner"]).abs().max() < 1e-8
    assert pool(parts[::-1], root) == pool(parts, root)
    assert pool([pool(parts[:2], root), parts[2]], root) == pool(parts, root)


def test_what_cannot_be_pooled_is_refused(parts: list[Path], tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is in the pool twice"):
        pool([parts[0], parts[1], parts[0]], tmp_path / "outputs")
    with pytest.raises(UserError, match="two spectra or more"):
        pool(parts[:1], tmp_path / "outputs")
    settings = tiny_cell(tiny_folder, tmp_path / "b.jsonl", tmp_path / "outputs", "capture.point=rotary")
    record = json.loads(run_cell(settings).read_text())
    rotary = tmp_path / "outputs" / "spectra" / record["spectrum_id"]
    with pytest.raises(UserError, match=r"cannot be pooled: capture is .*projection.* in one and .*rotary"):
        pool([parts[0], rotary], tmp_path / "outputs")


def test_the_same_data_drawn_otherwise_is_the_same_data(parts: list[Path], tiny_folder: Path, tmp_path: Path) -> None:
    settings = tiny_cell(tiny_folder, tmp_path / "b.jsonl", tmp_path / "outputs", "seed=7", "dataset.max_tokens=20")
    record = json.loads(run_cell(settings).read_text())
    with pytest.raises(UserError, match="is in the pool twice"):
        pool([parts[1], tmp_path / "outputs" / "spectra" / record["spectrum_id"]], tmp_path / "outputs")


def test_the_command(parts: list[Path], tmp_path: Path) -> None:
    done = call("merge.py", *map(str, parts[:2]), "--output-root", "outputs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / done.stdout.splitlines()[-1]
    ner = load_measurement(folder).layers.groupby("kind")["ner"].mean()
    assert f"{ner['key']:.4f}" in done.stdout
    for wrong in (["elsewhere"], [str(parts[1]), "--output-root", "/proc/kvcore"]):
        failed = call("merge.py", str(parts[0]), *wrong, cwd=tmp_path)
        assert (failed.returncode, len(failed.stderr.splitlines())) == (2, 1), failed.stderr
