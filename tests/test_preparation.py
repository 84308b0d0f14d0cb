"""What a cell finds before anything is measured: the model, once; the data, cut, counted and refused."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXTS, byte_tokenizer, tiny_cell, tiny_llama
from rich.console import Console
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from kvcore import preparation
from kvcore.data import sources
from kvcore.model.loading import Weights
from kvcore.pipeline import run_cell
from kvcore.schema import SettingError, Settings, UserError


def record_of(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def test_max_length_over_the_context_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    settings = tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs", "dataset.max_length=513")
    with pytest.raises(SettingError, match="dataset.max_length = 513: the context of model tiny is 512 tokens"):
        run_cell(settings)


def test_rows_left_out_are_counted(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "Rain and more rain."}\n{"text": null}\n{"text": " "}\n')
    path = run_cell(tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs"))
    assert record_of(path)["splits"]["calibration"]["left_out_rows"] == 2


def test_examples_longer_than_the_limit_are_cut_and_counted(
    tiny_folder: Path, tmp_path: Path, tiny_settings: Settings
) -> None:
    assert record_of(run_cell(tiny_settings))["splits"]["calibration"]["cut_examples"] == 0
    screen = io.StringIO()
    settings = tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs", "dataset.max_length=30")
    record = record_of(run_cell(settings, console=Console(file=screen, width=200)))
    longer = [text for text in TEXTS if len(text.encode()) > 30]
    assert record["splits"]["calibration"]["cut_examples"] == len(longer)
    assert record["tokens"] == sum(min(len(text.encode()), 30) for text in TEXTS)
    assert f"calibration: {len(longer)} examples were cut to max_length" in screen.getvalue()


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    tiny_llama(vocab_size=100, bos_token_id=1, eos_token_id=2).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text('{"text": "\u00e9\u00e9"}\n')
    with pytest.raises(UserError, match="the tokenizer is not the model's: it gives token .* has 100 tokens"):
        run_cell(tiny_cell(tmp_path / "model", tmp_path / "data.jsonl", tmp_path / "outputs"))


def test_a_model_is_loaded_once_for_cells_that_share_it(
    tiny_folder: Path, tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    original = preparation.load_model

    def counted(weights: Weights, **placement: Any) -> LlamaForCausalLM:
        loaded.append(str(placement["dtype"]))
        return original(weights, **placement)  # type: ignore[return-value]

    monkeypatch.setattr(preparation, "load_model", counted)
    loader = preparation.ModelLoader()
    cells = [
        tiny_settings,
        tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs", "seed=1"),
        tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs", "model.dtype=bfloat16"),
    ]
    for settings in cells:
        shared = record_of(run_cell(settings, loader=loader))
        alone = record_of(run_cell(settings.model_copy(update={"output_root": str(tmp_path / "alone")})))
        assert shared["ner"] == alone["ner"]
    assert loaded == ["float32", "float32", "float32", "bfloat16", "bfloat16"]


def test_an_unknown_family_is_refused_before_any_data_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20)).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "data.jsonl").write_text("this is no JSON")
    monkeypatch.setattr(preparation, "read_rows", lambda *_: pytest.fail("the data was read"))
    monkeypatch.setattr(sources, "file_hash", lambda *_: pytest.fail("the data was read"))
    with pytest.raises(SettingError, match="'gpt2': its attention layout is not known"):
        run_cell(tiny_cell(tmp_path / "gpt2", tmp_path / "data.jsonl", tmp_path / "outputs"))
    assert not list((tmp_path / "outputs").rglob("settings.yaml"))
