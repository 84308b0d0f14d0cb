"""From items to scores: blind, each question once, every gap counted, nothing paid for twice."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import byte_tokenizer
from judged_example import EXAMPLES, ToldJudge, answers, items

from kvcore.data.examples import Example
from kvcore.evaluation.generation import Answer
from kvcore.evaluation.intervals import mean_interval
from kvcore.evaluation.judging.cache import JudgementCache
from kvcore.evaluation.judging.cost import JudgingCost, judging_cost
from kvcore.evaluation.judging.items import JudgedItem, anchor_prompts, judged_examples, judged_items
from kvcore.evaluation.judging.judge import REFUSED, UNPARSABLE, Reply, failure
from kvcore.evaluation.judging.judging import judge_answers
from kvcore.evaluation.judging.rubric import Rubric, read_rubric
from kvcore.evaluation.judging.scores import score_table, summarize
from kvcore.schema import SettingError, UserError

RUBRIC = read_rubric("v1")


def texts(prompt: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(prompt.split("\n")[-1])
    return found


def by_answer(prompt: str) -> Reply:
    """1 to 8 for `low 0` to `low 7`, 9 for `high`, 10 for a reference, 7 for an untruncated answer."""
    word, number = texts(prompt)["answer"].rstrip(".").split()
    score = {"low": int(number) + 1, "high": 9, "Reference": 10, "untruncated": 7}[word]
    return Reply(float(score), None, f'{{"score": {score}}}', 100, 5)


def judged(told: ToldJudge, folder: Path, **changes: Any) -> pd.DataFrame:
    given = changes.pop("items", None) or items()
    return judge_answers(
        given, told, JudgementCache(folder), changes.pop("rubric", RUBRIC), **{"max_missing": 0.0} | changes
    )


def test_scores_reach_their_items(tmp_path: Path) -> None:
    table = judged(ToldJudge(by_answer), tmp_path)
    assert len(table) == 2 * 8 + 2 * 4
    low, high = table[table["point"] == 0], table[table["point"] == 1]
    assert low["prompt"].tolist() == list(range(8))
    assert low["score"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert high["score"].tolist() == [9] * 8
    chosen = anchor_prompts(8, 0.5, 0)
    for anchor, score in (("untruncated", 7), ("reference", 10)):
        rows = table[table["anchor"] == anchor]
        assert (rows["prompt"].tolist(), rows["score"].tolist()) == (chosen, [score] * 4)
        assert rows["point"].tolist() == [-1] * 4
    assert table["anchor"].isna().sum() == 16
    assert table["missing_reason"].isna().all()
    assert (table["asked"].all(), table["cached"].any(), table["empty"].any()) == (True, False, False)
    assert table.loc[table["anchor"] != "reference", "answer_tokens"].eq(3).all()
    assert table.loc[table["anchor"] == "reference", "answer_tokens"].isna().all()
    assert table["prompt_tokens"].eq(100).all()


def test_scores_by_hand(tmp_path: Path) -> None:
    points = [(0.5, 0.5), (1.0, 0.5)]
    scores = score_table(judged(ToldJudge(by_answer), tmp_path), points)
    assert scores["point"].tolist() == [0, 1, -1, -1]
    assert scores["anchor"].tolist()[2:] == ["untruncated", "reference"]
    assert scores["anchor"].isna().tolist() == [True, True, False, False]
    assert scores["key_ratio"].tolist()[:2] == [0.5, 1.0]
    assert scores["value_ratio"].tolist()[:2] == [0.5, 0.5]
    assert scores["score"].tolist() == [4.5, 9, 7, 10]
    low, high = mean_interval([1, 2, 3, 4, 5, 6, 7, 8])
    assert (scores["score_low"][0], scores["score_high"][0]) == (low, high)
    assert 1 < low < 4.5 < high < 8
    assert scores["judged"].tolist() == [8, 8, 4, 4]
    assert scores["missing"].tolist() == scores["empty"].tolist() == [0] * 4


def test_missing_scores_are_counted_and_left_out(tmp_path: Path) -> None:
    def tell(prompt: str) -> Reply:
        answer = texts(prompt)["answer"]
        missing = {"low 0": Reply(None, UNPARSABLE, "7!"), "low 1": Reply(None, REFUSED), "low 2": failure("the end")}
        return missing.get(answer) or by_answer(prompt)

    table = judged(ToldJudge(tell), tmp_path, max_missing=0.125)
    scores = score_table(table, [(0.5, 0.5), (1.0, 0.5)])
    assert (scores["score"][0], scores["judged"][0], scores["missing"][0]) == (6.0, 5, 3)  # mean of 4 to 8
    assert table["missing_reason"].dropna().tolist() == ["unparsable", "refused", "failed: the end"]
    assert summarize(table)["missing"] == {"unparsable": 1, "refused": 1, "failed": 1}
    with pytest.raises(SettingError) as caught:
        judged(ToldJudge(tell), tmp_path, max_missing=0.12)
    assert str(caught.value).startswith("judge.max_missing = 0.12: 3 of 24 judgements are missing, 1 of them: ")


def test_too_many_missing_fail_after_all_else_is_kept(tmp_path: Path) -> None:
    def tell(prompt: str) -> Reply:
        return failure("busy") if "low" in texts(prompt)["answer"] else by_answer(prompt)

    first = ToldJudge(tell)
    with pytest.raises(SettingError, match="8 of 24 judgements are missing, 8 of them: failed: busy"):
        judged(first, tmp_path)
    assert len(first.asked) == 24
    assert len(list(tmp_path.glob("*/*.json"))) == 16
    second = ToldJudge(by_answer)
    table = judged(second, tmp_path)
    assert sorted(texts(prompt)["answer"] for prompt in second.asked) == [f"low {index}" for index in range(8)]
    assert table["cached"].sum() == 16
    third = ToldJudge(by_answer)
    pd.testing.assert_frame_equal(judged(third, tmp_path).drop(columns="cached"), table.drop(columns="cached"))
    assert third.asked == []


def test_what_was_judged_before_a_fault_is_kept(tmp_path: Path) -> None:
    def tell(prompt: str) -> Reply:
        if len(told.asked) == 6:
            raise UserError("the judge is gone")
        return by_answer(prompt)

    told = ToldJudge(tell)
    with pytest.raises(UserError, match="the judge is gone"):
        judged(told, tmp_path)
    again = ToldJudge(by_answer)
    assert judged(again, tmp_path)["cached"].sum() == 5
    assert len(again.asked) == 24 - 5


def test_refused_and_unparsable_replies_are_not_asked_for_again(tmp_path: Path) -> None:
    def tell(prompt: str) -> Reply:
        return Reply(None, REFUSED if "0" in texts(prompt)["answer"] else UNPARSABLE, "no")

    first = judged(ToldJudge(tell), tmp_path, max_missing=1.0)
    again = ToldJudge(by_answer)
    second = judged(again, tmp_path, max_missing=1.0)
    assert again.asked == []
    assert second["missing_reason"].tolist() == first["missing_reason"].tolist()


def test_the_limit_holds_before_anything_is_sent(tmp_path: Path) -> None:
    told = ToldJudge(by_answer)
    with pytest.raises(SettingError, match="judge.max_requests = 23: 24 requests are needed, beside 0 that are cached"):
        judged(told, tmp_path, max_requests=23)
    assert told.asked == []
    judged(told, tmp_path, max_requests=24)
    judged(told, tmp_path, max_requests=1)  # all of it is cached
    with pytest.raises(
        SettingError, match="judge.max_requests = 11: 12 requests are needed, beside 16 that are cached"
    ):
        judged(told, tmp_path, items=items(points=("low", "untruncated", "other")), max_requests=11)


def test_the_same_question_is_asked_once(tmp_path: Path) -> None:
    told = ToldJudge(by_answer)
    told_of: list[int] = []
    table = judged(told, tmp_path, items=items(1.0, points=("low", "low", "untruncated")), advance=told_of.append)
    assert len(told.asked) == len(set(told.asked)) == 8 + 8 + 8
    assert len(table) == 3 * 8 + 2 * 8 == sum(told_of)
    assert table[table["point"] == 0]["score"].tolist() == table[table["point"] == 1]["score"].tolist()


def test_an_empty_answer_scores_1_unasked(tmp_path: Path) -> None:
    given = answers("high")
    given[2] = given[5] = Answer(" \n", 1, ended=True)
    told, told_of = ToldJudge(by_answer), []
    some = judged_items(EXAMPLES, [given], given, anchor_share=0.0, seed=0)
    table = judged(told, tmp_path, items=some, advance=told_of.append)
    assert table["score"].tolist() == [9, 9, 1, 9, 9, 1, 9, 9]
    assert (
        table["empty"].tolist() == (~table["asked"]).tolist() == [False, False, True, False, False, True, False, False]
    )
    assert len(told.asked) == 6
    assert sum(told_of) == 8
    (row,) = score_table(table, [(0.5, 0.5)]).to_dict("records")
    assert (row["score"], row["judged"], row["missing"], row["empty"]) == (7.0, 8, 0, 2)
    silent = [Answer("", 0, ended=True)] * 8
    nothing = judged(told, tmp_path, items=judged_items(EXAMPLES, [silent], silent, anchor_share=0.0, seed=0))
    assert nothing["score"].tolist() == [1.0] * 8


def test_a_judge_that_always_says_the_same_is_noticed(tmp_path: Path) -> None:
    same = judged(ToldJudge(lambda _: Reply(7.0)), tmp_path / "same")
    assert summarize(same)["carries_information"] is False
    other = judged(ToldJudge(by_answer), tmp_path / "other")
    assert summarize(other) == {"items": 24, "missing": {}, "empty": 0, "cached": 0, "carries_information": True}


def test_everything_that_could_change_a_reply_is_in_the_key(tmp_path: Path) -> None:
    judged(ToldJudge(by_answer), tmp_path)
    for changes in (
        {"rubric": Rubric("v1", RUBRIC.text.replace("You compare", "Compare"))},
        {"rubric": Rubric("v2", RUBRIC.text)},
        {"items": items(points=("low", "high"), seed=0), "told": ToldJudge(by_answer, "another")},
    ):
        told = changes.pop("told", ToldJudge(by_answer))
        judged(told, tmp_path, **changes)
        assert len(told.asked) == 24
    reordered = ToldJudge(by_answer)
    judged(reordered, tmp_path, items=items(seed=1, anchor_share=0.0))  # the order changes nothing
    assert reordered.asked == []


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"score": 7}',
        "another key", "score 11", "score NaN", "score true", "text", "reason", "both",
    ],
)  # fmt: skip
def test_damaged_files_are_asked_again(tmp_path: Path, damage: bytes | str) -> None:
    table = judged(ToldJudge(by_answer), tmp_path)
    files = sorted(tmp_path.glob("*/*.json"))
    assert len(files) == 24
    changes: dict[str, dict[str, Any]] = {
        "another key": {"key": files[1].stem}, "score 11": {"score": 11}, "score NaN": {"score": math.nan},
        "score true": {"score": True}, "text": {"text": None}, "reason": {"score": None, "missing_reason": "failed: x"},
        "both": {"missing_reason": "refused"},
    }  # fmt: skip
    content = json.loads(files[0].read_text())
    files[0].write_bytes(damage if isinstance(damage, bytes) else json.dumps(content | changes[damage]).encode())
    again = ToldJudge(by_answer)
    pd.testing.assert_frame_equal(judged(again, tmp_path).drop(columns="cached"), table.drop(columns="cached"))
    assert len(again.asked) == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="judgements cannot be kept in .*file"):
        judged(ToldJudge(by_answer), tmp_path / "file")


def places(some: list[JudgedItem]) -> list[tuple[int, int, str | None]]:
    return [(item.prompt, item.point, item.anchor) for item in some]


def test_the_seed_draws_order_and_anchors(tmp_path: Path) -> None:
    assert places(items(seed=3)) == places(items(seed=3))
    assert places(items(seed=3)) != places(items(seed=4))
    assert sorted(places(items(0.0, seed=3)), key=str) == sorted(places(items(0.0, seed=4)), key=str)
    told = ToldJudge(by_answer)
    judged(told, tmp_path, items=items(seed=3))
    asked = [texts(prompt)["answer"] for prompt in told.asked]
    assert asked == [item.answer.text for item in items(seed=3)]
    firsts = [asked.index(f"low {index}") < asked.index(f"high {index}") for index in range(8)]
    assert 0 < np.mean(firsts) < 1  # neither budget always comes first
    assert [len(anchor_prompts(8, share, 0)) for share in (0, 0.01, 0.125, 0.25, 0.3, 1)] == [0, 1, 1, 2, 3, 8]
    assert {tuple(anchor_prompts(8, 0.25, seed)) for seed in range(20)} != {(0, 1)}


def test_the_first_prompts_are_answered() -> None:
    assert judged_examples(EXAMPLES, 3) == EXAMPLES[:3]
    assert judged_examples(EXAMPLES, None) == EXAMPLES
    assert judged_examples(EXAMPLES, 9) == EXAMPLES  # at most so many


def test_cost_before_any_answer(tmp_path: Path) -> None:
    tokenizer, told = byte_tokenizer(), ToldJudge(by_answer)
    settings = {"points": 2, "max_new_tokens": 50, "max_reply_tokens": 20, "seed": 0}
    found = judging_cost(EXAMPLES, tokenizer, RUBRIC, **settings, anchor_share=0.5)
    longest = len(RUBRIC.prompt("Question 0?", "Reference 0.", "").encode()) + 50
    reference = len(RUBRIC.prompt("Question 0?", "Reference 0.", "Reference 0.").encode())
    assert found == JudgingCost(20, 2 * 8 * longest + 4 * reference, 20 * 20)
    given = [answers("untruncated"), answers("high")]
    judged(told, tmp_path, items=judged_items(EXAMPLES, given, given[0], anchor_share=0.5, seed=0))
    assert len(told.asked) == found.requests
    # Without anchors one reference makes contact with the judge.
    none = judging_cost(EXAMPLES, tokenizer, RUBRIC, **settings, anchor_share=0.0)
    assert none == JudgingCost(17, 2 * 8 * longest + reference, 17 * 20)
    assert found + none == JudgingCost(37, found.prompt_tokens + none.prompt_tokens, 37 * 20)


def test_running_text_is_no_item() -> None:
    with pytest.raises(ValueError, match="example 0 has no prompt"):
        judged_items([Example("text")], [[Answer("a", 1, ended=True)]], [], anchor_share=0.0, seed=0)


def test_tables_survive_parquet(tmp_path: Path) -> None:
    table = judged(ToldJudge(by_answer), tmp_path)
    scores = score_table(table, [(0.5, 0.5), (1.0, 0.5)])
    for name, frame in {"judgements": table, "scores": scores}.items():
        frame.to_parquet(tmp_path / f"{name}.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{name}.parquet"), frame)
