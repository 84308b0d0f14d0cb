"""The endpoint's judge against a real server: transformers serves SmolLM2 on loopback."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import httpx2
import pandas as pd
import pytest
from conftest import packaged_weights
from judged_example import endpoint, items

from kvcore.evaluation.judging.cache import JudgementCache
from kvcore.evaluation.judging.judge import Reply
from kvcore.evaluation.judging.judging import judge_answers
from kvcore.evaluation.judging.rubric import Rubric, parse_score
from kvcore.schema import SettingError

MISSING = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"transformers serve needs {' and '.join(MISSING)}: pip install '.[dev]'"),
]
LOADING_SECONDS = 100.0


class Served(NamedTuple):
    base_url: str
    model: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of SmolLM2 with a port of its own."""
    model = str(packaged_weights("smollm2_135m").folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    log = tmp_path_factory.mktemp("server") / "log"
    program = str(Path(sys.executable).parent / "transformers")
    with log.open("w") as file:
        server = subprocess.Popen(
            [program, "serve", model, "--host", "127.0.0.1", "--port", port, "--device", "cpu"],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", log)
            yield Served(f"http://127.0.0.1:{port}/v1", model)
        finally:
            server.terminate()
            server.wait(20)


def _wait(server: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + LOADING_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            if httpx2.get(address, timeout=2).status_code == 200:
                return
        except httpx2.HTTPError:
            time.sleep(0.2)
    pytest.fail(f"no server within {LOADING_SECONDS:.0f} s: {log.read_text()}")


def test_replies_of_a_real_server(served: Served) -> None:
    judge = endpoint(served.base_url, model=served.model, max_reply_tokens=9, structured="auto", timeout_seconds=60.0)
    replies: dict[int, Reply] = {}
    prompts = [
        'Repeat exactly this and nothing else: {"score": 7}',
        "Say the word hello.",
    ]
    judge.ask(prompts, replies.__setitem__)
    for index, found in replies.items():
        assert found.text, index
        assert found.score == parse_score(found.text)
        assert found.missing_reason == (None if found.score is not None else "unparsable")
        assert (found.prompt_tokens or 0) > len(prompts[index].split())
        assert 0 < (found.reply_tokens or 0) <= 9
    assert replies[1].missing_reason == "unparsable"
    assert "ello" in replies[1].text
    again: dict[int, Reply] = {}
    judge.ask(prompts, again.__setitem__)
    assert again == replies


def test_judgements_of_a_real_server_are_counted_and_cached(served: Served, tmp_path: Path) -> None:
    """What SmolLM2 thinks of the answers is not the point: it is too small to judge."""
    rubric = Rubric("test", 'Reply with {"score": N}, where N is an integer from 1 to 10.\n{item}')
    cache, some = JudgementCache(tmp_path), items(anchor_share=0.0, points=("low",))[:2]

    def judged(base_url: str) -> pd.DataFrame:
        judge = endpoint(base_url, model=served.model, max_reply_tokens=9, concurrent_requests=2, timeout_seconds=60.0)
        return judge_answers(some, judge, cache, rubric, max_requests=2, max_missing=1.0)

    table = judged(served.base_url)
    files = [json.loads(file.read_text()) for file in tmp_path.glob("*/*.json")]
    assert len(files) == len(table) == 2
    assert sorted(table["score"].fillna(-1)) == sorted(parse_score(file["text"]) or -1 for file in files)
    assert set(table["missing_reason"].dropna()) <= {"unparsable"}
    assert table["prompt_tokens"].gt(30).all()
    again = judged(served.base_url)
    assert again["cached"].all()
    pd.testing.assert_frame_equal(again.drop(columns="cached"), table.drop(columns="cached"))


def test_a_model_that_the_server_does_not_serve(served: Served) -> None:
    with pytest.raises(SettingError) as caught:
        endpoint(served.base_url, model="another").ask(["hello"], lambda _index, _reply: None)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("judge.model = 'another': the endpoint answers 400 (Server is pinned to ")
