"""Asking an endpoint again: which faults may pass, how long to wait, when to stop."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from judged_example import asked, endpoint, judged
from scripted_judge import Said, error, score, serving

from kvcore.evaluation.judging.judge import Reply
from kvcore.evaluation.judging.retrying import backoff_delay, wished_delay
from kvcore.schema import SettingError


@pytest.mark.parametrize(
    "passing",
    [
        error(429, "slow down"), error(500, "oops"), error(503, "busy"), error(408, "late"), Said(b"<html>", 502),
        Said(b"{", 200), Said(b"", 200), Said([], 200), Said(None, 200), Said("text", 200), Said({}, 200),
        Said({"choices": []}, 200), Said({"choices": [{}]}, 200), Said({"choices": [None]}, 200),
        Said({"choices": "x"}, 200), Said({"choices": [{"message": "x"}]}, 200),
        Said(b"<html>hello</html>", 200, {"Content_Type": "text/html"}), Said(b"\xff\xfe", 200),
    ],
)  # fmt: skip
def test_passing_faults_are_tried_again(passing: Said) -> None:
    with serving(lambda _, number: passing if number < 2 else score(8)) as server:
        assert asked(endpoint(server.base_url)) == [Reply(8.0, None, '{"score": 8}', 100, 5)]
    assert len(server.requests) == 3


def test_a_hanging_request_is_given_up_and_tried_again() -> None:
    with serving(lambda _, number: Said(score(3).body, delay=3.0 if number == 1 else 0)) as server:
        replies = asked(endpoint(server.base_url, timeout_seconds=0.4, concurrent_requests=1), 3)
    assert [found.score for found in replies] == [3, 3, 3]
    assert len(server.requests) == 4


def test_retry_after_is_honoured() -> None:
    times: list[float] = []

    def answer(_: Any, number: int) -> Said:
        times.append(time.monotonic())
        return error(429, "slow down", Retry_After="1.5") if number == 0 else score(6)

    with serving(answer) as server:
        assert asked(endpoint(server.base_url))[0].score == 6
        assert 1.4 < times[1] - times[0] < 4
        server.answer = lambda _, __: error(429, "slow down", Retry_After="3600")
        begun = time.monotonic()
        (found,) = asked(endpoint(server.base_url))
        assert time.monotonic() - begun < 2  # no use in waiting
    assert (found.score, found.missing_reason) == (None, "failed: the endpoint answers 429 (slow down)")


def test_a_wish_to_wait_no_time_is_no_leave_to_hammer() -> None:
    with serving(lambda _, __: error(429, "now", Retry_After="0")) as server:
        asked(endpoint(server.base_url, retry_seconds=1.2))
    assert len(server.requests) <= 5


def test_delays_by_hand() -> None:
    now = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
    assert wished_delay({"retry-after": "7"}) == 7
    assert wished_delay({"retry-after": "0.5"}) == 0.5
    assert wished_delay({"retry-after": "Mon, 04 May 2026 12:00:30 GMT"}, now) == 30
    assert wished_delay({"retry-after": "Mon, 04 May 2026 11:00:00 GMT"}, now) == 0
    assert wished_delay({"retry-after": "soon"}) is None
    assert wished_delay({}) is None
    assert [backoff_delay(failures, 0.0) for failures in (0, 1, 2, 10, 5000)] == [0.25, 0.5, 1, 15, 15]
    assert backoff_delay(2, 0.5) == 1.5


def test_retries_end_with_their_budget() -> None:
    with serving(lambda _, __: error(500, "oops")) as server:
        begun = time.monotonic()
        (found,) = asked(endpoint(server.base_url, retry_seconds=1.0))
        assert time.monotonic() - begun < 3
        assert found.missing_reason == "failed: the endpoint answers 500 (oops)"
        assert len(server.requests) >= 2
        server.requests.clear()
        asked(endpoint(server.base_url, retry_seconds=0.0))
        assert len(server.requests) == 1


def test_an_endpoint_that_went_down_is_not_waited_for_by_every_request(tmp_path: Path) -> None:
    with serving(lambda _, number: score(4) if number < 3 else error(503, "down for repair")) as server:
        judge = endpoint(server.base_url, retry_seconds=0.0, concurrent_requests=1)
        with pytest.raises(SettingError) as caught:
            judged(judge, tmp_path)
        assert str(caught.value) == (
            f"judge.base_url = '{server.base_url}': 10 requests in a row failed, each for judge.retry_seconds; "
            "the last: the endpoint answers 503 (down for repair)"
        )
        assert len(server.requests) == 13
        server.answer = lambda _, __: score(4)
        assert judged(judge, tmp_path)["cached"].sum() == 3
    assert len(server.requests) == 13 + 21
