"""Judgements on disk: one small file each, so that a rerun is free and an interrupted one goes on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvcore.cell import write_atomically
from kvcore.evaluation.judging.judge import REFUSED, UNPARSABLE, Reply
from kvcore.evaluation.judging.rubric import HIGHEST, LOWEST, Rubric
from kvcore.schema import UserError, first_line

# Part of every key: to be raised when the same reply would be read otherwise, or the files change.
_FORMAT = 1


class JudgementCache:
    """Replies of judges in a folder, by everything that could change them.

    Refusals and replies that are no score are kept like scores: they were paid for, and a judge without chance in
    its sampling would repeat them. To ask again, delete their files. Failures are not kept.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder; it need not exist."""
        self.folder = folder

    @staticmethod
    def key(rubric: Rubric, identity: Mapping[str, Any], prompt: str) -> str:
        """Return the SHA-256 of the canonical JSON of everything that could change a reply.

        Args:
            rubric: What the prompt was made from.
            identity: Of the judge.
            prompt: What it is asked.
        """
        content = {
            "format": _FORMAT,
            "rubric": {"version": rubric.version, "hash": rubric.content_hash},
            "judge": identity,
            "prompt": prompt,
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def find(self, key: str) -> Reply | None:
        """Return a reply; None if it is not there, or its file is damaged."""
        try:
            content = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return _reply(content) if isinstance(content, dict) and content.get("key") == key else None

    def keep(self, key: str, reply: Reply) -> None:
        """Write a reply, unless it is a failure.

        Raises:
            UserError: It cannot be written.
        """
        if reply.failed:
            return
        path = self._path(key)
        content = {"key": key} | {name: getattr(reply, name) for name in _FIELDS}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(content, ensure_ascii=True) + "\n")
        except OSError as error:
            raise UserError(f"judgements cannot be kept in {self.folder} ({first_line(error)})") from error

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


_FIELDS = ("score", "missing_reason", "text", "prompt_tokens", "reply_tokens")


def _reply(content: Mapping[str, Any]) -> Reply | None:
    """Return what a file holds if it is what was written."""
    if set(content) != {"key", *_FIELDS} or not isinstance(content["text"], str):
        return None
    score, reason = content["score"], content["missing_reason"]
    is_score = type(score) in (int, float) and LOWEST <= score <= HIGHEST and reason is None
    is_missing = score is None and reason in (UNPARSABLE, REFUSED)
    counts = [content["prompt_tokens"], content["reply_tokens"]]
    if not (is_score or is_missing) or any(type(count) is not int and count is not None for count in counts):
        return None
    return Reply(score, reason, content["text"], *counts)
