"""The rubric: what a judge is asked, and which replies count."""

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from kvcore.schema import SettingError, nearest

LOWEST, HIGHEST = 1, 10
SCORES = tuple(range(LOWEST, HIGHEST + 1))

# What an endpoint with structured output is asked for.
REPLY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"score": {"type": "integer", "enum": list(SCORES)}},
    "required": ["score"],
    "additionalProperties": False,
}

_FOLDER = files("kvcore.evaluation.judging") / "rubrics"
_PLACE = "{item}"
_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL)
# Where a judge's tokenizer could see a token of its own: <|im_end|>, </s>, <start_of_turn>, [INST], [/INST].
_LIKE_SPECIAL_TOKEN = re.compile(r"<(?=[^\s\d=])|\[(?=/?[A-Z][A-Z_]*\])")


@dataclass(frozen=True)
class Rubric:
    """A versioned text that says how to rate.

    Attributes:
        version: Its name.
        text: What it says; ends with the place of the item.
    """

    version: str
    text: str

    @property
    def content_hash(self) -> str:
        """SHA-256 of what a judge sees of it and of which replies count."""
        content = json.dumps([self.text, REPLY_SCHEMA], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def prompt(self, question: str, reference: str, answer: str) -> str:
        r"""Return what a judge is asked.

        The three texts are one line of JSON, so that none can end early or begin another; and what could be a
        special token of the judge's tokenizer is escaped (`<` as \u003c, `[` as \u005b), so that an answer
        cannot end the message that it stands in.
        """
        texts = {"question": question, "reference": reference, "answer": answer}
        line = json.dumps({name: _encodable(text) for name, text in texts.items()}, ensure_ascii=False)
        line = _LIKE_SPECIAL_TOKEN.sub(lambda found: f"\\u{ord(found.group()):04x}", line)
        return self.text.removesuffix(_PLACE) + line


def read_rubric(version: str) -> Rubric:
    """Read one of the rubrics that come with kvcore.

    Raises:
        SettingError: There is none of this name.
    """
    known = sorted(file.name.removesuffix(".md") for file in _FOLDER.iterdir() if file.name.endswith(".md"))
    if version not in known:
        raise SettingError("judge.rubric", version, nearest(version, known))
    text = (_FOLDER / f"{version}.md").read_text(encoding="utf-8").strip()
    if text.count(_PLACE) != 1 or not text.endswith(_PLACE):
        raise ValueError(f"rubric {version} does not end with {_PLACE}")
    return Rubric(version, text)


def parse_score(reply: str) -> int | None:
    """Return the score of a reply; None if it is anything but a score.

    What counts is a JSON object with the one key `score` and an integer from 1 to 10, alone or in one Markdown
    code fence, with white space around. What does not: text beside it, other keys, a key twice, "7", 7.0, true.
    """
    text = reply.strip()
    if fenced := _FENCED.fullmatch(text):
        text = fenced.group(1).strip()
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, _Pairs) or len(pairs) != 1:
        return None
    name, score = pairs[0]
    return score if name == "score" and type(score) is int and score in SCORES else None


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of a JSON object, a repeated key included."""


def _encodable(text: str) -> str:
    """Replace halves of surrogate pairs, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
