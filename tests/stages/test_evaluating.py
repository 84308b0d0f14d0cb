"""Cells that measure cost on examples that do not calibrate, or on other data."""

import json
from pathlib import Path
from typing import Any

import hand_written
import pandas as pd
import pytest
import torch
from conftest import TEXTS, tiny_cell
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from kvcore import measure
from kvcore.pipeline import run_cell
from kvcore.schema import SettingError, Settings


def record_of(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def nll_by_hand(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    tokens = torch.tensor(tokenizer(text)["input_ids"])
    return -float(hand_written.run(model, tokens).logits.log_softmax(-1)[:-1].gather(1, tokens[1:, None]).sum())


def held_out_cell(folder: Path, data: Path, *more: str) -> Settings:
    return tiny_cell(folder, data, data.parent / "outputs", "evaluation.share=0.25", *more)


def test_cost_is_measured_on_examples_that_do_not_calibrate(
    tiny_folder: Path,
    tiny_data: Path,
    tiny: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    path = run_cell(held_out_cell(tiny_folder, tiny_data))
    record = record_of(path)
    splits = pd.read_parquet(path.parent / "splits.parquet").groupby("split")["example"].agg(list)
    assert sorted(splits["calibration"] + splits["evaluation"]) == list(range(len(TEXTS)))
    assert len(splits["evaluation"]) == 2
    assert record["splits"]["evaluation"] == {
        "dataset": "local",
        "language": "english",
        "examples": 2,
        "tokens": sum(len(TEXTS[number].encode()) for number in splits["evaluation"]),
        "cut_examples": 0,
        "left_out_rows": 0,
        "in_sample": False,
        "shared_examples": 0,
    }
    assert record["tokens"] == sum(len(TEXTS[number].encode()) for number in splits["calibration"])
    expected = measure(tiny, tokenizer, [TEXTS[number] for number in splits["calibration"]]).layers
    assert record["ner"]["key"] == pytest.approx(expected[expected["kind"] == "key"]["ner"].mean(), abs=1e-6)

    likelihoods = pd.read_parquet(path.parent / "likelihoods.parquet")
    assert sorted(likelihoods["example"].unique()) == sorted(splits["evaluation"])
    for number in splits["evaluation"]:
        rows = likelihoods[(likelihoods["example"] == number) & (likelihoods["point"] == 0)]
        assert rows["nll"].item() == pytest.approx(nll_by_hand(tiny, tokenizer, TEXTS[number]), rel=1e-5)
    surface = pd.read_parquet(path.parent / "perplexity.parquet").set_index("point")
    again = likelihoods.groupby("point")[["nll", "tokens"]].sum()
    assert list(again["nll"] / again["tokens"]) == pytest.approx(list(surface["nll"] / surface["tokens"]), rel=1e-12)


def test_another_dataset_is_evaluated_on_and_what_calibrates_left_out(
    tiny_folder: Path, tmp_path: Path, tiny_settings: Settings
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, "Something new.", "And again."]))
    more = ["dataset@held_out.dataset=local", f"held_out.dataset.path={other}", "held_out.dataset.name=other"]
    more += ["held_out.dataset.columns.text=text", "held_out.dataset.max_length=256", "evaluation.share=0"]
    path = run_cell(tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs", *more))
    evaluation = record_of(path)["splits"]["evaluation"]
    assert (evaluation["dataset"], evaluation["examples"], evaluation["shared_examples"]) == ("other", 2, len(TEXTS))
    assert not evaluation["in_sample"]
    own = record_of(run_cell(tiny_settings))
    assert own["spectrum_id"] == record_of(path)["spectrum_id"]
    assert own["splits"]["evaluation"]["in_sample"]
    other.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    with pytest.raises(SettingError, match="every example to evaluate on is one of the calibration"):
        run_cell(tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs", *more))


@pytest.mark.parametrize("limit", ["evaluation.max_examples=3", "evaluation.max_tokens=10000"])
def test_limits_of_the_evaluation_that_cannot_be_met(tiny_folder: Path, tiny_data: Path, limit: str) -> None:
    with pytest.raises(SettingError, match=limit.replace("=", " = ")):
        run_cell(held_out_cell(tiny_folder, tiny_data, limit))
    assert not list((tiny_data.parent / "outputs" / "spectra").iterdir())
