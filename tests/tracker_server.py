"""A server on loopback that takes runs as that of Weights & Biases does, as far as the real client needs it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from listening import listening

ENTITY = "team"


@dataclass
class Service:
    """What the server does, and what it was sent.

    Attributes:
        key_is_wrong: Whether every key is refused.
        hanging: Whether requests are taken and never answered.
        views_are_refused: Whether this key may not save views.
        runs: The variables of every UpsertBucket.
        views: The variables of every upsertView.
        history: By run: first row and rows of every transmission.
    """

    key_is_wrong: bool = False
    hanging: bool = False
    views_are_refused: bool = False
    runs: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)
    history: dict[str, list[tuple[int, list[dict[str, Any]]]]] = field(default_factory=dict)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answer one GraphQL operation; most of them with an error, which the client gets over."""
        entity = {"id": "entity", "name": ENTITY}
        if "upsertBucket" in query:
            self.runs.append(variables)
            project = {"id": "project", "name": variables["project"], "entity": entity}
            bucket = {
                "id": "run",
                "name": variables["name"],
                "displayName": variables["displayName"],
                "project": project,
            }
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "upsertView" in query and self.views_are_refused:
            return {"errors": [{"message": "permission denied"}]}
        if "upsertView" in query:
            self.views.append(variables)
            return {"data": {"upsertView": {"view": {"id": "view", "name": variables["name"]}, "inserted": True}}}
        if "viewer" in query:
            viewer = {"id": "user", "entity": ENTITY, "username": "someone", "flags": "{}", "teams": {"edges": []}}
            return {"data": {"viewer": viewer}}
        return {"errors": [{"message": "not here"}]}

    def take(self, run: str, files: dict[str, Any]) -> None:
        """Keep the rows of a run's history."""
        if sent := files.get("wandb-history.jsonl"):
            rows = [json.loads(row) for row in sent["content"]]
            self.history.setdefault(run, []).append((sent["offset"], rows))


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """Serve until the block ends; yields the address."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if service.hanging:
                ended.wait(60)
                return
            status, answer = 200, {}
            if service.key_is_wrong:
                status, answer = 401, {"errors": [{"message": "user is not logged in"}]}
            elif self.path == "/graphql":
                request = json.loads(content)
                answer = service.answer(request["query"], request.get("variables") or {})
            elif self.path.endswith("/file_stream"):
                service.take(self.path.split("/")[-2], json.loads(content).get("files") or {})
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815 - the name that the server calls

    with listening(Handler) as address:
        try:
            yield address
        finally:
            ended.set()
