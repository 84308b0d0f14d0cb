"""Models of the user's own, from a folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import tiny_llama
from safetensors.torch import load_file, save_file

from kvcore.model.loading import find_weights, load_model, load_tokenizer, read_config
from kvcore.schema import SettingError


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def find(folder: Path) -> str:
    return find_weights(source="folder", name="tiny", path=str(folder)).revision


def test_a_folder_loads(folder: Path) -> None:
    weights = find_weights(source="folder", name="tiny", path=str(folder))
    model = load_model(weights, dtype="bfloat16", device="auto", attention="eager")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert load_tokenizer(weights)("Rain.")["input_ids"] == [49, 64, 72, 77, 13]


def test_the_revision_follows_content_and_not_place(folder: Path, tmp_path: Path) -> None:
    before = find(folder)
    (folder / "README.md").write_text("notes")
    assert find(folder) == before
    moved = folder.rename(tmp_path / "elsewhere")
    assert find(moved) == before
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert find(moved) != before


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_incomplete_folders_are_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(SettingError, match="model.path"):
        find(folder)


def test_missing_folder_is_refused() -> None:
    with pytest.raises(SettingError, match="model.path = '/nowhere'"):
        find(Path("/nowhere"))


def test_unreadable_files_are_one_clear_error(folder: Path) -> None:
    weights = find_weights(source="folder", name="tiny", path=str(folder))
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    with pytest.raises(SettingError, match=r"model.path = .* cannot be loaded"):
        load_model(weights, dtype="float32", device="cpu", attention="sdpa")
    (folder / "config.json").write_text("{not json")
    with pytest.raises(SettingError, match="config.json cannot be used"):
        read_config(weights)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(SettingError, match="no usable tokenizer"):
        load_tokenizer(weights)


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"),
            "missing keys model.layers.1.self_attn",
        ),
        (
            lambda tensors: tensors.update({"model.layers.3.extra": torch.ones(2)}),
            "unexpected keys model.layers.3.extra",
        ),
        (lambda tensors: tensors.pop("lm_head.weight"), "missing keys lm_head.weight"),
    ],
)
def test_weights_that_do_not_fit_are_never_filled_with_random_numbers(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], fault: str
) -> None:
    rewrite_weights(folder, change)
    weights = find_weights(source="folder", name="tiny", path=str(folder))
    with pytest.raises(SettingError, match=f"the weights do not fit config.json: {fault}"):
        load_model(weights, dtype="float32", device="cpu", attention="sdpa")


@pytest.mark.parametrize("layers", [2, 4])
def test_another_number_of_layers_is_refused(folder: Path, layers: int) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 3', f'"num_hidden_layers": {layers}'))
    with pytest.raises(SettingError, match="the weights do not fit config.json"):
        load_model(
            find_weights(source="folder", name="tiny", path=str(folder)),
            dtype="float32",
            device="cpu",
            attention="sdpa",
        )


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    tiny_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    weights = find_weights(source="folder", name="tied", path=str(tmp_path))
    model = load_model(weights, dtype="float32", device="cpu", attention="sdpa")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_wrong_type_in_the_configuration_is_one_clear_error(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_key_value_heads": 2', '"num_key_value_heads": "two"'))
    with pytest.raises(SettingError, match="config.json cannot be used"):
        read_config(find_weights(source="folder", name="tiny", path=str(folder)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_said(folder: Path) -> None:
    weights = find_weights(source="folder", name="tiny", path=str(folder))
    with pytest.raises(SettingError, match="model.device = 'cuda'"):
        load_model(weights, dtype="float32", device="cuda", attention="sdpa")
