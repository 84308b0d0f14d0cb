"""Servers on loopback that answer as the Hugging Face hub and GitHub do, for the real clients."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from listening import listening

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repositories:
    """What the server has.

    Attributes:
        folders: Files by `models/OWNER/NAME`, `datasets/OWNER/NAME` or, for GitHub, `OWNER/NAME`.
        gated: Those whose terms nobody has accepted.
        hanging: Whether requests are taken and never answered.
        asked: The paths that were asked for.
        sizes: Sizes to claim instead of the real ones, by file name.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    hanging: bool = False
    asked: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    def files(self, name: str) -> dict[str, bytes]:
        folder = self.folders[name]
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@contextmanager
def serving(repositories: Repositories) -> Iterator[str]:
    """Serve until the block ends; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            repositories.asked.append(path)
            if repositories.hanging:
                time.sleep(60)
                return
            parts = path.split("/")
            if "raw" in parts[2:3]:
                name, rest = "/".join(parts[:2]), parts[4:]
                if name in repositories.folders and (body := repositories.files(name).get("/".join(rest))):
                    self.answer(200, body)
                else:
                    self.answer(404)
                return
            self.answer_as_hub(parts)

        do_HEAD = do_GET  # noqa: N815

        def answer_as_hub(self, parts: list[str]) -> None:
            asks_api = parts[0] == "api"
            parts = parts[1:] if asks_api else parts if parts[0] == "datasets" else ["models", *parts]
            name, action, revision = "/".join(parts[:3]), *(*parts[3:5], "", "")[:2]
            if name not in repositories.folders:
                self.answer(404, X_Error_Code="RepoNotFound")
            elif name in repositories.gated:
                self.answer(403, X_Error_Code="GatedRepo")
            elif revision not in ("main", COMMIT):
                self.answer(404, X_Error_Code="RevisionNotFound")
            elif action == "resolve":
                body = repositories.files(name)["/".join(parts[5:])]
                self.answer(200, body, ETag=f'"{sha1(body).hexdigest()}"', X_Repo_Commit=COMMIT)  # noqa: S324
            else:
                self.answer(200, self.described(name, action), Content_Type="application/json")

        def described(self, name: str, action: str) -> bytes:
            files = {file: (sha1(body).hexdigest(), len(body)) for file, body in repositories.files(name).items()}  # noqa: S324
            files |= {file: (files[file][0], size) for file, size in repositories.sizes.items() if file in files}
            if action == "tree":
                return json.dumps(
                    [{"type": "file", "path": file, "oid": oid, "size": size} for file, (oid, size) in files.items()]
                ).encode()
            siblings = [{"rfilename": file, "blobId": oid, "size": size} for file, (oid, size) in files.items()]
            return json.dumps({"id": name.split("/", 1)[1], "sha": COMMIT, "siblings": siblings}).encode()

    with listening(Handler) as address:
        yield address
