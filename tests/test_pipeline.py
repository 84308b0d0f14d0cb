"""Whole cells on a tiny model: what is on disk, running again, failing and being interrupted."""

import io
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import hand_written
import pandas as pd
import pytest
import torch
from conftest import TEXTS, byte_tokenizer, tiny_cell
from rich.console import Console
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from kvcore import measure, pipeline
from kvcore.evaluation.gates import Gate
from kvcore.pipeline import run_cell
from kvcore.schema import GateError, NoRankBudget, SettingError, Settings, UserError
from kvcore.spectrum.metrics import normalized_effective_rank
from kvcore.stages import checking, evaluating, measuring, recording


def record_of(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def numbers(path: Path) -> list[Any]:
    """Everything in a cell's folder that must not depend on how the cell came to its end."""
    record = record_of(path)
    names = ("splits", "layers", "convergence", "perplexity", "likelihoods")
    tables = [pd.read_parquet(path.parent / f"{name}.parquet").fillna(-1).to_dict() for name in names]
    return [record["ner"], record["perplexity"], record["splits"], record["tokens"], *tables]


def test_a_cell_leaves_what_was_promised(
    tiny_settings: Settings, tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = run_cell(tiny_settings)
    record, folder = record_of(path), path.parent
    root = Path(tiny_settings.output_root)
    assert path == root / "runs" / "tiny" / "local-english" / record["id"] / "record.json"
    assert {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} == {
        "settings.yaml", "splits.parquet", "layers.parquet", "convergence.parquet", "ranks.json",
        "perplexity.parquet", "likelihoods.parquet", "record.json",
        "figures/layerwise_ner.png", "figures/layerwise_ner.pdf",
        "figures/perplexity_heatmap.png", "figures/perplexity_heatmap.pdf",
        "figures/allocation.png", "figures/allocation.pdf",
    }  # fmt: skip
    assert record["status"] == "finished"
    assert set(record["gates"]) == {"token_count", "full_rank", "tail_energy", "perplexity_moves"}
    assert all(gate["passed"] for gate in record["gates"].values())
    assert set(record["seconds"]) == {"prepare", "load", "read", "capture", "gates", "perplexity", "figures"}

    layers = pd.read_parquet(folder / "layers.parquet")
    expected = measure(tiny, tokenizer, TEXTS).layers
    assert list(layers.columns) == [
        "layer",
        "kind",
        "kv_dim",
        "tokens",
        "effective_rank",
        "ner",
        "ner_energy",
        "stable_rank",
        "rank_at_energy_0.9",
        "rank_at_energy_0.95",
        "rank_at_energy_0.99",
        "rank_at_energy_0.999",
        "converged",
    ]
    pd.testing.assert_frame_equal(layers, expected, rtol=1e-6)
    assert record["ner"]["key"] == pytest.approx(layers[layers["kind"] == "key"]["ner"].mean())
    assert record["tokens"] == sum(len(text.encode()) for text in TEXTS)
    assert record["tokens_per_dim"] == record["tokens"] / 16
    assert record["converged"] == bool(layers["converged"].all()) == (record["tokens"] >= 320)

    convergence = pd.read_parquet(folder / "convergence.parquet")
    assert list(convergence.columns) == ["layer", "kind", "tokens", "ner"]
    surface = pd.read_parquet(folder / "perplexity.parquet")
    assert list(surface.columns) == [
        "point", "strategy", "asked", "key_ratio", "value_ratio", "budget",
        "kept_keys", "kept_values", "cost_ratio", "basis_numbers", "break_even_tokens",
        "tokens", "nll", "perplexity", "perplexity_low", "perplexity_high", "bits_per_byte",
        "nd_ppl", "nd_ppl_low", "nd_ppl_high", "delta_nll", "delta_nll_low", "delta_nll_high",
    ]  # fmt: skip
    assert list(zip(surface["key_ratio"], surface["value_ratio"], strict=True)) == [
        (1, 1),
        (1, 0.25),
        (0.5, 1),
        (0.5, 0.25),
    ]
    total = sum(float(-log_probability(tiny, tokenizer, text).sum()) for text in TEXTS)
    count = sum(len(text.encode()) - 1 for text in TEXTS)
    assert record["perplexity"]["baseline"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert record["perplexity"]["grid_mean_nd_ppl"] == pytest.approx(surface["nd_ppl"].iloc[1:].mean())

    tensors = load_file(root / "spectra" / record["spectrum_id"] / "spectrum.safetensors")
    assert len(tensors) == 12


def log_probability(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    tokens = torch.tensor(tokenizer(text)["input_ids"])
    return hand_written.run(model, tokens).logits.log_softmax(-1)[:-1].gather(1, tokens[1:, None])


def test_a_finished_cell_is_not_run_again(tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run_cell(tiny_settings)
    content = path.read_bytes()
    monkeypatch.setattr(pipeline, "load_inputs", lambda *_: pytest.fail("ran again"))
    assert run_cell(tiny_settings) == path
    assert path.read_bytes() == content


def test_a_damaged_record_is_named(tiny_settings: Settings) -> None:
    path = run_cell(tiny_settings)
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    with pytest.raises(UserError, match=r"record.json cannot be read .*remove its folder"):
        run_cell(tiny_settings)


def test_the_spectrum_is_shared_by_other_budgets(
    tiny_folder: Path, tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = record_of(run_cell(tiny_settings))
    monkeypatch.setattr(measuring, "measure_batches", lambda *_, **__: pytest.fail("captured again"))
    other = tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs", "rank_budget.key_ratios=[0.75]")
    second = record_of(run_cell(other))
    assert second["spectrum_id"] == first["spectrum_id"]
    assert second["id"] != first["id"]
    assert second["ner"] == first["ner"]
    assert "capture" not in second["seconds"]


def test_no_rank_budget_measures_the_untruncated_model(
    tiny_folder: Path, tmp_path: Path, tiny_settings: Settings
) -> None:
    full = record_of(run_cell(tiny_settings))
    settings = tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs")
    path = run_cell(settings.model_copy(update={"rank_budget": NoRankBudget(name="none")}))
    expected = full["perplexity"] | {"grid_mean_nd_ppl": None, "grid_mean_nd_ppl_interval": None}
    assert record_of(path)["perplexity"] == expected
    assert len(pd.read_parquet(path.parent / "perplexity.parquet")) == 1
    assert {file.name for file in (path.parent / "figures").iterdir()} == {"layerwise_ner.png", "layerwise_ner.pdf"}
    assert len(record_of(path)["gates"]) == 4


@pytest.mark.parametrize("more", [["capture.batch_tokens=16"], ["evaluation.batch_tokens=4096"], ["model.device=cpu"]])
def test_how_a_cell_is_run_does_not_change_its_numbers(
    tiny_folder: Path, tmp_path: Path, tiny_settings: Settings, more: list[str]
) -> None:
    first = run_cell(tiny_settings)
    second = run_cell(tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "other", *more))
    assert record_of(second)["id"] == record_of(first)["id"]
    layers = [pd.read_parquet(path.parent / "layers.parquet") for path in (first, second)]
    assert (layers[0]["ner"] - layers[1]["ner"]).abs().max() < 1e-6
    curves = [pd.read_parquet(path.parent / "convergence.parquet") for path in (first, second)]
    pd.testing.assert_frame_equal(*curves, rtol=1e-6)
    assert curves[0]["tokens"].nunique() >= 4
    surfaces = [pd.read_parquet(path.parent / "perplexity.parquet") for path in (first, second)]
    assert (surfaces[0]["perplexity"] / surfaces[1]["perplexity"] - 1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("where", "stage"),
    [
        (measuring, "measure_batches"),
        (checking, "check_perplexity"),
        (evaluating, "perplexity_surface"),
        (recording, "_draw"),
    ],
)
def test_an_interrupted_cell_is_unfinished_and_completes(
    tiny_settings: Settings,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: ModuleType,
    stage: str,
) -> None:
    undisturbed = tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "undisturbed")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(where, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_cell(tiny_settings)
    (settings_file,) = (tmp_path / "outputs" / "runs").rglob("settings.yaml")
    assert not (settings_file.parent / "record.json").exists()
    assert not (settings_file.parent / "failure.json").exists()
    assert numbers(run_cell(tiny_settings)) == numbers(run_cell(undisturbed))


def test_a_failed_cell_leaves_word_and_can_be_run_again(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by nothing")

    with monkeypatch.context() as patched:
        patched.setattr(evaluating, "perplexity_surface", fail)
        with pytest.raises(ZeroDivisionError):
            run_cell(tiny_settings)
    (failure_file,) = Path(tiny_settings.output_root).rglob("failure.json")
    failure = json.loads(failure_file.read_text())
    assert failure["stage"] == "perplexity"
    assert failure["error"] == "by nothing"
    assert "ZeroDivisionError: by nothing" in failure["traceback"]
    assert failure["settings"]["model"]["name"] == "tiny"
    assert not (failure_file.parent / "record.json").exists()
    run_cell(tiny_settings)
    assert not failure_file.exists()


def test_a_failed_gate_fails_the_cell_unless_told_to_warn(
    tiny_folder: Path, tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "check_token_count", lambda *_, **__: Gate(passed=False, value=3, limit=0))
    with pytest.raises(GateError, match="gate token_count: value 3, limit 0"):
        run_cell(tiny_settings)
    assert not list(Path(tiny_settings.output_root).rglob("record.json"))
    path = run_cell(tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs", "gates=warn"))
    record = record_of(path)
    assert record["status"] == "untrusted"
    assert record["gates"]["token_count"] == {"passed": False, "value": 3, "limit": 0}
    with pytest.raises(GateError, match="gate token_count: value 3, limit 0"):
        run_cell(tiny_settings)  # the record is there, but not to be trusted


def test_a_damaged_spectrum_is_never_used(tiny_folder: Path, tmp_path: Path, tiny_settings: Settings) -> None:
    record = record_of(run_cell(tiny_settings))
    tensors = tmp_path / "outputs" / "spectra" / record["spectrum_id"] / "spectrum.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    other = tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs", "rank_budget.key_ratios=[0.75]")
    with pytest.raises(UserError, match="delete that folder"):
        run_cell(other)


def test_one_token_has_no_perplexity(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(SettingError, match="evaluation.target = 'all': these examples have no such token"):
        run_cell(tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs"))


def test_exactly_max_tokens_are_seen(tiny_folder: Path, tmp_path: Path, tiny_settings: Settings) -> None:
    assert tiny_settings.dataset.max_tokens is None
    path = run_cell(
        tiny_cell(
            tiny_folder,
            tmp_path / "data.jsonl",
            tmp_path / "outputs",
            "dataset.max_tokens=123",
            "evaluation.max_tokens=50",
        )
    )
    assert record_of(path)["tokens"] == 123
    assert set(pd.read_parquet(path.parent / "layers.parquet")["tokens"]) == {123}
    assert pd.read_parquet(path.parent / "perplexity.parquet")["tokens"].max() < 50


@pytest.mark.parametrize("point", ["normed", "rotary"])
def test_a_cell_at_another_point_without_attention_sinks(
    tiny_folder: Path, tiny_settings: Settings, tiny: LlamaForCausalLM, point: str
) -> None:
    data, outputs = Path(tiny_settings.dataset.path), Path(tiny_settings.output_root)
    more = [f"capture={point}", "capture.skip_first_tokens=2", "capture.per_head=true"]
    path = run_cell(tiny_cell(tiny_folder, data, outputs, *more))
    record = record_of(path)
    assert record["settings"]["capture"]["point"] == point
    assert record["tokens"] == sum(len(text.encode()) - 2 for text in TEXTS)
    assert all(gate["passed"] for gate in record["gates"].values())

    passes = [hand_written.run(tiny, torch.tensor(byte_tokenizer()(text)["input_ids"])) for text in TEXTS]
    layers = pd.read_parquet(path.parent / "layers.parquet").set_index(["layer", "kind"])["ner"]
    heads = pd.read_parquet(path.parent / "heads.parquet").set_index(["layer", "kind", "head"])["ner"]
    assert len(heads) == 3 * 2 * 2
    for layer in range(3):
        rows = torch.cat([done.keys[point][layer][2:] for done in passes])
        assert layers[layer, "key"] == pytest.approx(normalized_effective_rank(torch.linalg.svdvals(rows)), abs=1e-6)
        for head in range(2):
            alone = torch.linalg.svdvals(rows[:, head * 8 : head * 8 + 8])
            assert heads[layer, "key", head] == pytest.approx(normalized_effective_rank(alone), abs=1e-6)


def test_brackets_in_the_output_folder_are_printed_as_they_are(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "Rain and more rain."}\n')
    screen = io.StringIO()
    settings = tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs")
    settings = settings.model_copy(update={"output_root": str(tmp_path / "out[bold]x[" / "b]")})
    path = run_cell(settings, console=Console(file=screen, width=200))
    assert str(path.parent / "layers.parquet") in screen.getvalue().splitlines()


def test_kept_work_outlives_a_spectrum_that_cannot_be_written(
    tiny_folder: Path, tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_cell(tiny_folder, tmp_path / "data.jsonl", tmp_path / "outputs", "capture.checkpoint_seconds=0")

    def fail(*_: object) -> None:
        raise UserError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(measuring, "save_measurement", fail)
        with pytest.raises(UserError, match="the disk is full"):
            run_cell(settings)
    (kept,) = (tmp_path / "outputs" / "spectra").glob("*.unfinished")
    resumed = run_cell(settings)
    assert not kept.exists()
    alone = tiny_settings.model_copy(update={"output_root": str(tmp_path / "alone")})
    assert numbers(resumed) == numbers(run_cell(alone))
