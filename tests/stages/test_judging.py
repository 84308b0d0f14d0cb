"""Cells whose answers are judged: by a server, by a model in the same process, or not at all."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import byte_tokenizer, composed, tiny_llama, tiny_overrides
from rich.console import Console
from scripted_judge import Answer, error, item_of, score, serving
from transformers import PreTrainedTokenizerBase

from kvcore.cell import Cell
from kvcore.evaluation import generation
from kvcore.pipeline import run_cell
from kvcore.progress import StageProgress
from kvcore.results.collection import collect
from kvcore.results.correlation import correlate
from kvcore.schema import SettingError, Settings, parse_settings
from kvcore.stages import judging
from kvcore.stages.judging import estimate_cost

CANARY = "sk-canary-51c0"
QUESTIONS = [f"What is {number} and {number}?" for number in range(10)]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    data = tmp_path / "pairs.jsonl"
    rows = [
        {"instruction": text, "input": "", "output": f"It is {2 * n}, a number."} for n, text in enumerate(QUESTIONS)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def judged_cell(folder: Path, pairs: Path, *more: str) -> Settings:
    overrides = tiny_overrides(folder, pairs, pairs.parent / "outputs")
    overrides = [override for override in overrides if "columns.text" not in override and "share" not in override]
    judge = ["judge.prompts=2", "judge.max_new_tokens=12", "judge.anchor_share=1.0", "evaluation.share=0.3"]
    return parse_settings(composed(*overrides, *more, *judge))


def at(base_url: str) -> list[str]:
    return ["judge=openai", f"judge.base_url={base_url}", "judge.model=m", "judge.key_variable=A_KEY"]


def by_length(request: dict[str, Any], _number: int) -> Any:
    return score(min(10, 1 + len(item_of(request)["answer"]) % 10))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", CANARY)


def test_a_judged_cell(tiny_folder: Path, pairs: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    screen = io.StringIO()
    with serving(by_length) as server:
        path = run_cell(judged_cell(tiny_folder, pairs, *at(server.base_url)), console=Console(file=screen, width=120))
    splits = pd.read_parquet(path.with_name("splits.parquet"))
    asked = splits[splits["split"] == "evaluation"]["example"].tolist()[:2]
    answers = pd.read_parquet(path.with_name("answers.parquet"))
    assert list(answers["point"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert answers["example"].tolist() == asked * 4

    model = tiny_llama()
    for prompt, number in enumerate(asked):  # the untruncated model, one token after the other
        tokens = tokenizer(f"{QUESTIONS[number]}\n\n")["input_ids"]
        for _ in range(12):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        said = tokens[-12:]
        said = said[: said.index(257)] if 257 in said else said
        assert answers["text"][prompt] == tokenizer.decode(said, skip_special_tokens=True)

    judgements = pd.read_parquet(path.with_name("judgements.parquet"))
    for _, row in judgements[judgements["point"] >= 0].iterrows():
        text = answers[(answers["point"] == row["point"]) & (answers["prompt"] == row["prompt"])]["text"].item()
        assert row["score"] == (min(10, 1 + len(text) % 10) if text.strip() else 1)
    references = judgements[judgements["anchor"] == "reference"]["score"].tolist()
    assert references == [min(10, 1 + len(f"It is {2 * number}, a number.") % 10) for number in asked]

    scores = pd.read_parquet(path.with_name("scores.parquet"))
    assert list(scores["asked"]) == [
        "untruncated", "keys 1, values 0.25", "keys 0.5, values 1", "keys 0.5, values 0.25",
        "anchor: untruncated", "anchor: reference",
    ]  # fmt: skip
    means = judgements[judgements["point"] >= 0].groupby("point")["score"].mean()
    assert list(scores["score"][:4]) == pytest.approx(list(means))
    record = json.loads(path.read_text())["judged"]
    assert record["items"] == 12
    assert record["missing"] == {}
    assert record["grid_mean_score"] == pytest.approx(means[1:].mean())
    assert record["untruncated_score"] == pytest.approx(means[0])
    assert (path.parent / "figures" / "score_heatmap.png").is_file()
    assert "anchor: reference" in screen.getvalue()

    blind = json.dumps(server.requests)
    assert not any(word in blind for word in ("untruncated", "truncat", "budget", "keys 1", "0.25", "rank_"))


def test_the_key_is_written_nowhere(
    tiny_folder: Path, pairs: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def rude(request: dict[str, Any], number: int) -> Any:
        return by_length(request, number) if number < 3 else error(401, f"the key {CANARY} was revoked")

    with serving(rude) as server:
        settings = judged_cell(tiny_folder, pairs, *at(server.base_url), "judge.concurrent_requests=1")
        with pytest.raises(SettingError, match="judge.key_variable") as caught:
            run_cell(settings)
    assert f"Bearer {CANARY}" in server.keys
    (failure,) = pairs.parent.rglob("failure.json")
    assert "judge" in json.loads(failure.read_text())["stage"]
    written = [file for file in pairs.parent.rglob("*") if file.is_file()]
    assert len([file for file in written if "judgements" in file.parts]) == 3
    for file in written:
        assert CANARY.encode() not in file.read_bytes(), file
    out, err = capfd.readouterr()
    assert CANARY not in out + err + caplog.text + str(caught.value)


def test_what_was_paid_for_is_not_asked_again(tiny_folder: Path, pairs: Path) -> None:
    def stops(request: dict[str, Any], number: int) -> Any:
        return by_length(request, number) if number < 5 else error(403, "no more money", "insufficient_quota")

    more = ["judge.concurrent_requests=1", "judge.retry_seconds=0"]
    answer: list[Answer] = [stops]
    with serving(lambda request, number: answer[0](request, number)) as server:
        settings = judged_cell(tiny_folder, pairs, *at(server.base_url), *more)
        with pytest.raises(SettingError):
            run_cell(settings)
        first = [json.dumps(request["messages"]) for request in server.requests[:5]]
        answer[0], number = by_length, len(server.requests)
        interrupted = json.loads(run_cell(settings).read_text())
        again = [json.dumps(request["messages"]) for request in server.requests[number:]]
        assert not set(first) & set(again)
        assert len(again) == len(set(again))
        number = len(server.requests)
        shutil.rmtree(pairs.parent / "outputs" / "runs")
        free = json.loads(run_cell(settings).read_text())
        assert len(server.requests) == number
    for name in ("grid_mean_score", "untruncated_score", "items"):
        assert free["judged"][name] == interrupted["judged"][name]


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (["judge.base_url=http://127.0.0.1:9/v1"], "judge.base_url"),
        (["judge.key_variable=NOT_SET"], "judge.key_variable"),
        (["judge.max_new_tokens=600"], "judge.max_new_tokens = 600: the longest prompt has"),
        (["judge.rubric=v9"], "judge.rubric = 'v9': known: v1"),
        (["dataset.columns.text=output"], "judge.name = 'openai': a dataset of running text has no prompts"),
    ],
)
def test_mistakes_are_found_before_the_long_work(tiny_folder: Path, pairs: Path, mistake: list[str], said: str) -> None:
    with serving(by_length) as server:
        settings = judged_cell(tiny_folder, pairs, *at(server.base_url))
        values = settings.model_dump(mode="json")
        for override in mistake:
            name, _, value = override.partition("=")
            *groups, last = name.split(".")
            target = values
            for group in groups:
                target = target[group]
            target[last] = int(value) if value.isdigit() else value
        with pytest.raises(SettingError) as caught:
            run_cell(parse_settings(values))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((pairs.parent / "outputs" / "spectra").glob("*")) if (pairs.parent / "outputs").exists() else True


def test_too_many_requests_or_gaps_fail_the_cell(tiny_folder: Path, pairs: Path) -> None:
    with serving(by_length) as server:
        with pytest.raises(SettingError, match="judge.max_requests = 2"):
            run_cell(judged_cell(tiny_folder, pairs, *at(server.base_url), "judge.max_requests=2"))
        assert len(server.requests) == 1  # the first contact
    gaps = r"judge.max_missing = 0.1: .* judgements are missing.*unparsable"
    with serving(lambda *_: score(11)) as server, pytest.raises(SettingError, match=gaps):
        run_cell(judged_cell(tiny_folder, pairs, *at(server.base_url)))


def test_a_judge_that_tells_nothing_apart_is_said(tiny_folder: Path, pairs: Path) -> None:
    screen = io.StringIO()  # no terminal: a log of a cluster, say
    with serving(lambda *_: score(7)) as server:
        path = run_cell(judged_cell(tiny_folder, pairs, *at(server.base_url)), console=Console(file=screen))
    assert json.loads(path.read_text())["judged"]["carries_information"] is False
    assert "The judge gives the same score to everything: its scores carry no information.\n" in screen.getvalue()


def test_what_a_score_is_no_mean_of_is_said(tiny_folder: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, generate = io.StringIO(), judging.generate_answers

    def silent_at_first(*arguments: Any, **settings: Any) -> list[generation.Answer]:
        return [generation.Answer(" ", 1, ended=True), *generate(*arguments, **settings)[1:]]

    monkeypatch.setattr(judging, "generate_answers", silent_at_first)

    def gaps(request: dict[str, Any], number: int) -> Any:
        return score(11) if "It is" in item_of(request)["answer"] and number else by_length(request, number)

    with serving(gaps) as server:
        settings = judged_cell(tiny_folder, pairs, *at(server.base_url), "judge.max_missing=0.5")
        run_cell(settings, console=Console(file=screen))
    said = screen.getvalue()
    assert "5 of 12 answers are empty: each scores 1, and nobody was asked.\n" in said
    assert "missing scores are left out of the means (unparsable: 1)\n" in said
    assert "carry no information" not in said


def test_a_model_in_the_same_process(tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    judge = ["judge=transformers", "model@judge.model=folder", "judge.model.name=tiny-judge"]
    # Of random weights, so that its judgements are missing; all that can be seen here is that it was asked.
    tiny_llama(max_position_embeddings=4096).save_pretrained(tmp_path / "judge")
    byte_tokenizer().save_pretrained(tmp_path / "judge")
    asked = [*judge, f"judge.model.path={tmp_path / 'judge'}", "judge.max_missing=1.0"]
    path = run_cell(judged_cell(tiny_folder, pairs, *asked))
    settings = json.loads(path.read_text())["settings"]
    assert settings["judge"]["model"]["revision"] != settings["model"]["revision"]
    judgements = pd.read_parquet(path.with_name("judgements.parquet"))
    replies = judgements[judgements["asked"]]
    assert ((replies["missing_reason"] == "unparsable") | replies["score"].between(1, 10)).all()
    assert (replies["prompt_tokens"] > 1000).all()
    strict = [*asked[:-1], "judge.max_missing=0.0"]
    if replies["score"].isna().any():
        with pytest.raises(SettingError, match="judge.max_missing = 0.0: .* missing in the finished cell"):
            run_cell(judged_cell(tiny_folder, pairs, *strict))

    # With its context of 512 tokens the model itself cannot even hold the rubric: said before the long work.
    with pytest.raises(
        SettingError, match=r"judge.name = 'transformers': its first judgement failed: .*context of 512"
    ):
        run_cell(judged_cell(tiny_folder, pairs, *judge, f"judge.model.path={tiny_folder}"))


def test_costs_are_estimated_and_scores_correlated(tiny_folder: Path, pairs: Path) -> None:
    with serving(by_length) as server:
        settings = judged_cell(tiny_folder, pairs, *at(server.base_url))
        estimate = estimate_cost(settings, StageProgress(visible=False))
        assert not server.requests
        for seed in range(3):
            dataset = settings.dataset.model_copy(update={"name": f"local{seed}"})
            finished = settings.model_copy(update={"seed": seed, "dataset": dataset})
            run_cell(finished)
    assert estimate.requests == 4 * 2 + 2  # four allocations and two references
    assert len(server.requests) <= 3 * estimate.requests
    assert estimate_cost(finished, StageProgress(visible=False)).requests == 0
    found, points = correlate(collect(pairs.parent / "outputs").cells)
    assert set(found["cost"]) == {"nd_ppl", "gpt_score"}
    records = [json.loads(path.read_text())["judged"] for path in (pairs.parent / "outputs").rglob("record.json")]
    assert sorted(points["gpt_score"]) == pytest.approx(sorted(record["grid_mean_score"] for record in records))


def test_what_changes_judgements_changes_the_cell(tiny_folder: Path, pairs: Path) -> None:
    plain = judged_cell(tiny_folder, pairs, *at("http://localhost/v1"))

    def identity(**changes: Any) -> str:
        settings = plain.model_copy(update={"judge": plain.judge.model_copy(update=changes)})
        return Cell(settings, "m", "d", rubric_revision="r").id

    for name, value in {"temperature": 0.5, "model": "other", "prompts": 3, "max_new_tokens": 5}.items():
        assert identity(**{name: value}) != identity()
    for name, value in {"concurrent_requests": 1, "timeout_seconds": 1.0, "max_requests": 9, "batch_tokens": 7}.items():
        assert identity(**{name: value}) == identity()
    assert Cell(plain, "m", "d", rubric_revision="other").id != identity()
