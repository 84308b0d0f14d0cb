"""A server on loopback that speaks the protocol of OpenAI's chat completions, badly if it is told to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from listening import listening


@dataclass
class Said:
    """One answer of the server."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


def reply(content: str | None, **message: Any) -> Said:
    """Return a completion; `finish_reason` goes beside the message."""
    choice = {
        "index": 0,
        "finish_reason": message.pop("finish_reason", "stop"),
        "message": {"role": "assistant", "content": content} | message,
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
    return Said(
        {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    )


def score(number: int) -> Said:
    return reply(json.dumps({"score": number}))


def error(status: int, message: str, code: str | None = None, **headers: str) -> Said:
    return Said({"error": {"message": message, "type": "error", "code": code}}, status, headers)


def item_of(request: dict[str, Any]) -> dict[str, str]:
    """Return the question, the reference and the answer of a request."""
    found: dict[str, str] = json.loads(request["messages"][0]["content"].splitlines()[-1])
    return found


Answer = Callable[[dict[str, Any], int], Said]


@dataclass
class ScriptedJudge:
    """What the server does, and what it was sent.

    Attributes:
        answer: Given a request and how many came before it.
        requests: Bodies, in the order in which they came.
        keys: Their Authorization headers.
        paths: Their paths.
    """

    answer: Answer
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    base_url: str = ""
    most_at_once: int = 0
    _under_way: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    def take(self, request: dict[str, Any], path: str, key: str | None) -> Said:
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self.keys.append(key)
            self.paths.append(path)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        said = self.answer(request, number)
        time.sleep(said.delay)
        with self._lock:
            self._under_way -= 1
        return said


@contextmanager
def serving(answer: Answer) -> Iterator[ScriptedJudge]:
    """Serve on a port of its own until the block ends."""
    judge = ScriptedJudge(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = judge.take(request, self.path, self.headers["Authorization"])
            body = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
            try:
                self.send_response(said.status)
                headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
                for name, value in (headers | {n.replace("_", "-"): v for n, v in said.headers.items()}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):  # the client has given up
                self.close_connection = True

    with listening(Handler) as address:
        judge.base_url = f"{address}/v1"
        yield judge
