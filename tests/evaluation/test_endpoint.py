"""The endpoint's judge against a server that misbehaves in every way it is told to."""

import json
import logging
import socket
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from judged_example import asked, endpoint, judged
from scripted_judge import Said, error, item_of, reply, score, serving

from kvcore.evaluation.judging import endpoint as endpoint_module
from kvcore.evaluation.judging.endpoint import EndpointJudge
from kvcore.evaluation.judging.judge import Reply
from kvcore.evaluation.judging.rubric import REPLY_SCHEMA
from kvcore.schema import SettingError, UserError

CANARY = "sk-canary-8f3b1c"


def test_what_is_sent_and_what_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", f" {CANARY}\n")
    with serving(lambda _, number: score(number + 1)) as server:
        replies = asked(endpoint(f"{server.base_url}/", key_variable="A_KEY", concurrent_requests=1), 3)
    assert replies == [Reply(float(n), None, f'{{"score": {n}}}', 100, 5) for n in (1, 2, 3)]
    assert server.paths == ["/v1/chat/completions"] * 3
    assert server.keys == [f"Bearer {CANARY}"] * 3
    assert server.requests[0] == {
        "model": "a-model",
        "messages": [{"role": "user", "content": "prompt 0"}],
        "temperature": 0.0,
        "max_tokens": 20,
    }


def test_no_key_is_sent_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with serving(lambda _, __: score(5)) as server:
        assert asked(endpoint(server.base_url))[0].score == 5
    assert server.keys == [None]


def test_requests_are_under_way_together_and_come_back_in_place() -> None:
    with serving(
        lambda request, _: reply(f'{{"score": {int(request["messages"][0]["content"][7:]) % 10 + 1}}}')
    ) as server:
        slow = server.answer
        server.answer = lambda request, number: Said(slow(request, number).body, delay=0.2)
        replies = asked(endpoint(server.base_url, concurrent_requests=5), 21)
    assert [found.score for found in replies] == [index % 10 + 1 for index in range(21)]
    assert server.most_at_once == 5


def test_what_is_no_score() -> None:
    answers = [
        (reply("Seven."), "unparsable"),
        (reply('{"score": 11}'), "unparsable"),
        (reply(None), "unparsable"),
        (reply(""), "unparsable"),
        (reply(None, finish_reason="length"), "unparsable"),
        (reply(None, refusal="I cannot judge this."), "refused"),
        (reply('{"score": 7}', refusal="no"), "refused"),
        (reply("", finish_reason="content_filter"), "refused"),
        (error(413, "too long"), "failed: the endpoint answers 413 (too long)"),
        (error(400, "maximum context length is 10"), "failed: the endpoint answers 400 (maximum context length is 10)"),
    ]
    with serving(lambda _, number: answers[number][0]) as server:
        replies = asked(endpoint(server.base_url, concurrent_requests=1), len(answers))
    assert [(found.score, found.missing_reason) for found in replies] == [(None, reason) for _, reason in answers]
    assert len(server.requests) == len(answers)  # none of it is asked again
    assert replies[0].text == "Seven."


def test_structured_output_where_there_is_some() -> None:
    with serving(lambda _, __: score(9)) as server:
        assert asked(endpoint(server.base_url, structured="auto"))[0].score == 9
        assert asked(endpoint(server.base_url, structured="never"))[0].score == 9
    schema = {"name": "score", "strict": True, "schema": REPLY_SCHEMA}
    assert server.requests[0]["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert "response_format" not in server.requests[1]


@pytest.mark.parametrize("status", [400, 422])
def test_structured_output_where_it_is_refused(status: int) -> None:
    def answer(request: dict[str, Any], _: int) -> Said:
        return error(status, "unknown field response_format") if "response_format" in request else score(9)

    with serving(answer) as server:
        replies = asked(endpoint(server.base_url, structured="auto"), 5)
        assert [found.score for found in replies] == [9] * 5
        assert len(server.requests) == 6  # refused once, and remembered
        with pytest.raises(SettingError, match=f"judge.structured = 'always': the endpoint answers {status}"):
            asked(endpoint(server.base_url, structured="always"))


def test_structured_output_that_is_ignored_is_for_the_parser() -> None:
    with serving(lambda _, number: reply("I say 7") if number else score(7)) as server:
        replies = asked(endpoint(server.base_url, structured="auto", concurrent_requests=1), 2)
    assert [found.missing_reason for found in replies] == [None, "unparsable"]


@pytest.mark.parametrize(("without_schema", "second"), [(error(400, "too long"), None), (score(2), 2)])
def test_one_prompt_refused_does_not_end_structured_output(without_schema: Said, second: int | None) -> None:
    def answer(request: dict[str, Any], _: int) -> Said:
        if request["messages"][0]["content"] != "prompt 1":
            return score(2)
        return error(400, "not as a schema") if "response_format" in request else without_schema

    with serving(answer) as server:
        replies = asked(endpoint(server.base_url, structured="auto", concurrent_requests=1), 3)
    assert [found.score for found in replies] == [2, second, 2]
    assert ["response_format" in request for request in server.requests] == [True, True, False, True]


def test_parameters_that_newer_models_refuse() -> None:
    def answer(request: dict[str, Any], _: int) -> Said:
        if "max_tokens" in request:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return error(400, "'temperature' does not support 0.0") if "temperature" in request else score(5)

    with serving(answer) as server:
        assert [found.score for found in asked(endpoint(server.base_url, temperature=None), 3)] == [5] * 3
        assert server.requests[1]["max_completion_tokens"] == 20
        assert len(server.requests) == 4
        for structured in ("never", "auto"):
            with pytest.raises(SettingError, match="judge.temperature = 0.0: .*null: it is not sent"):
                asked(endpoint(server.base_url, structured=structured))


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (error(401, f"wrong key {CANARY}"), "judge.key_variable = 'A_KEY': the endpoint answers 401 (wrong key [key])"),
        (error(403, "not yours"), "judge.key_variable = 'A_KEY': the endpoint answers 403 (not yours)"),
        (error(402, "no money"), "judge.key_variable = 'A_KEY': the endpoint answers 402 (no money)"),
        (error(429, "quota", "insufficient_quota"), "judge.key_variable = 'A_KEY': the endpoint answers 429 (quota)"),
        (
            error(404, "no a-model"),
            "judge.model = 'a-model': the endpoint answers 404 (no a-model): no such model there, or judge.base_url "
            "does not end as it should (often /v1)",
        ),
    ],
)  # fmt: skip
def test_what_no_other_request_would_survive(
    said: Said, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("A_KEY", CANARY)
    with serving(lambda _, __: said) as server:
        with pytest.raises(SettingError) as caught:
            judged(endpoint(server.base_url, key_variable="A_KEY"), tmp_path)
        assert str(caught.value) == line
        assert len(server.requests) == 1  # the first one tells
        server.requests.clear()
        server.answer = lambda _, number: score(4) if number < 6 else error(401, "revoked")
        with pytest.raises(SettingError, match="answers 401"):
            judged(endpoint(server.base_url, key_variable="A_KEY", concurrent_requests=1), tmp_path)
        server.answer = lambda _, __: score(4)
        assert judged(endpoint(server.base_url, key_variable="A_KEY"), tmp_path)["cached"].sum() == 6


def test_an_unknown_model_is_not_always_a_404() -> None:
    for said in (error(400, "unknown: a-model"), error(422, "no", "model_not_found")):
        with serving(lambda _, __, said=said: said) as server:
            with pytest.raises(SettingError, match="judge.model = 'a-model': the endpoint answers 4"):
                asked(endpoint(server.base_url, structured="auto"), 5)
            assert len(server.requests) <= 2


def test_a_flagged_prompt_is_not_a_wrong_key() -> None:
    with serving(lambda _, number: error(403, "flagged") if number == 1 else score(4)) as server:
        replies = asked(endpoint(server.base_url, concurrent_requests=1), 3)
    assert [found.missing_reason for found in replies] == [None, "failed: the endpoint answers 403 (flagged)", None]


def test_an_endpoint_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_FIRST_CONTACT_SECONDS", 0.6)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        begun = time.monotonic()
        with pytest.raises(SettingError) as caught:
            judged(endpoint(address, retry_seconds=60.0), tmp_path)
        assert time.monotonic() - begun < 10
    assert str(caught.value).startswith(f"judge.base_url = '{address}': no connection (ConnectError: ")
    assert "\n" not in str(caught.value)


def test_an_endpoint_that_never_answers(tmp_path: Path) -> None:
    with serving(lambda _, __: Said(score(4).body, delay=3)) as server:
        with pytest.raises(SettingError) as caught:
            judged(endpoint(server.base_url, timeout_seconds=0.2, retry_seconds=0.3), tmp_path)
        assert str(caught.value) == f"judge.base_url = '{server.base_url}': the endpoint does not answer in time"


@pytest.mark.parametrize("address", ["http://[::1", "http://127.0.0.1:99999/v1", "http://a b/v1", "http:///v1"])
def test_an_address_that_is_none(address: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="^judge.base_url = "):
        judged(endpoint(address, retry_seconds=0.0), tmp_path)


@pytest.mark.parametrize("key", [None, "", "  ", "sk-cänary", "sk-can ary", "sk-canary\nX-Evil: 1"])
def test_keys_that_are_none(key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("A_KEY", key)
    with pytest.raises(SettingError, match="judge.key_variable = 'A_KEY': .*this environment variable") as caught:
        endpoint("http://127.0.0.1:1/v1", key_variable="A_KEY")
    assert "sk-c" not in str(caught.value)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    def advance(_: int) -> None:
        if len(server.requests) >= 8:
            raise KeyboardInterrupt

    with serving(lambda request, _: Said(score(len(item_of(request)["answer"]) % 10 + 1).body, delay=0.05)) as server:
        with pytest.raises(KeyboardInterrupt):
            judged(endpoint(server.base_url), tmp_path, advance=advance)
        paid = len(server.requests)
        assert 8 <= paid < 24
        table = judged(endpoint(server.base_url), tmp_path)
        assert len(server.requests) == 24  # everything that was sent was kept
        again = judged(endpoint(server.base_url), tmp_path)
        assert len(server.requests) == 24
    assert table["cached"].sum() == paid
    assert again["cached"].all()
    pd.testing.assert_frame_equal(again.drop(columns="cached"), table.drop(columns="cached"))


def test_other_settings_are_other_judgements(tmp_path: Path) -> None:
    with serving(lambda _, number: score(number % 10 + 1)) as server:
        for changes in (
            {}, {"model": "b"}, {"temperature": 0.5}, {"temperature": None}, {"structured": "auto"},
            {"max_reply_tokens": 30},
        ):  # fmt: skip
            server.requests.clear()
            judged(endpoint(server.base_url, **changes), tmp_path)
            assert len(server.requests) == 24, changes
        server.requests.clear()
        judged(endpoint(f"{server.base_url}/", concurrent_requests=1, timeout_seconds=5.0, retry_seconds=1.0), tmp_path)
        assert server.requests == []


def everything_said_by(caught: BaseException) -> str:
    said, pending = "", [caught]
    while pending:
        fault = pending.pop()
        said += repr(fault) + str(fault) + "".join(traceback.format_exception(fault))
        pending += [other for other in (fault.__cause__, fault.__context__) if other is not None]
    return said


def test_the_key_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The endpoint repeats the key wherever it can; nothing that is written, said or raised holds it."""
    monkeypatch.setenv("A_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx2", "httpcore2"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
        caplog.set_level(logging.DEBUG, logger=name)
    talkative = [
        reply(f"{CANARY} says 7"), reply(None, refusal=CANARY), error(413, f"{'x' * 190}{CANARY}"), score(7),
        error(400, CANARY), Said({"detail": CANARY}, 400), Said({"message": [CANARY]}, 400), Said([CANARY], 400),
        Said(f"no {CANARY}".encode(), 418), Said(b"{" + CANARY.encode(), 200), error(500, CANARY), Said(CANARY, 200),
    ]  # fmt: skip
    said: list[str] = []
    with serving(lambda _, number: talkative[number % len(talkative)]) as server:
        judge = endpoint(server.base_url, key_variable="A_KEY", retry_seconds=0.0, structured="auto")
        said.append(repr(judge) + str(judge.identity()))
        table = judged(judge, tmp_path / "cache", max_missing=1.0)
        said.append(table.to_csv())
        table.to_parquet(tmp_path / "table.parquet", compression=None)
        for fault in (
            error(401, CANARY),
            error(404, CANARY),
            error(429, CANARY, "insufficient_quota"),
            error(503, CANARY),
        ):
            server.answer = lambda _, __, fault=fault: fault  # type: ignore[misc]
            with pytest.raises(UserError) as caught:
                judged(endpoint(server.base_url, key_variable="A_KEY", retry_seconds=0.0), tmp_path / "other")
            said.append(everything_said_by(caught.value))
    assert CANARY in str(server.keys)  # it was really sent
    assert "[key]" in "".join(said)  # and really repeated
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 3
    written = b"".join(file.read_bytes() for file in files)
    out, err = capfd.readouterr()
    for place in (written.decode(errors="replace"), out, err, caplog.text, *said):
        assert CANARY not in place
        assert CANARY[:12] not in place


def test_threads_do_not_stay() -> None:
    with serving(lambda _, __: score(5)) as server:
        before = threading.active_count()
        asked(endpoint(server.base_url), 20)
        assert isinstance(endpoint(server.base_url), EndpointJudge)
        assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]
        assert threading.active_count() <= before + 8  # the server's own, one for each connection
    assert json.loads(json.dumps(endpoint("http://x/v1").identity()))["model"] == "a-model"
