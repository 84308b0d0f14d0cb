"""Items to judge, and judges that say what a test tells them to."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kvcore.data.examples import Example
from kvcore.evaluation.generation import Answer
from kvcore.evaluation.judging.cache import JudgementCache
from kvcore.evaluation.judging.endpoint import EndpointJudge
from kvcore.evaluation.judging.items import JudgedItem, judged_items
from kvcore.evaluation.judging.judge import Judge, Receive, Reply
from kvcore.evaluation.judging.judging import judge_answers
from kvcore.evaluation.judging.rubric import read_rubric

EXAMPLES = [Example(prompt=f"Question {index}?", response=f"Reference {index}.") for index in range(8)]


def answers(word: str, count: int = len(EXAMPLES)) -> list[Answer]:
    return [Answer(f"{word} {index}", 3, ended=True) for index in range(count)]


def items(anchor_share: float = 0.5, seed: int = 0, points: Sequence[str] = ("low", "high")) -> list[JudgedItem]:
    given = [answers(word) for word in points]
    return judged_items(EXAMPLES, given, answers("untruncated"), anchor_share=anchor_share, seed=seed)


def endpoint(base_url: str, **changes: Any) -> EndpointJudge:
    settings: dict[str, Any] = {
        "base_url": base_url,
        "model": "a-model",
        "key_variable": "",
        "structured": "never",
        "temperature": 0.0,
        "max_reply_tokens": 20,
        "concurrent_requests": 4,
        "timeout_seconds": 20.0,
        "retry_seconds": 10.0,
    }
    return EndpointJudge(**settings | changes)


class ToldJudge(Judge):
    """Replies with what a function makes of the prompt."""

    def __init__(self, tell: Callable[[str], Reply], name: str = "told") -> None:  # noqa: D107
        self.tell = tell
        self.name = name
        self.asked: list[str] = []

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def ask(self, prompts: Sequence[str], receive: Receive) -> None:
        for index, prompt in enumerate(prompts):
            self.asked.append(prompt)
            receive(index, self.tell(prompt))


def asked(judge: Judge, count: int = 1) -> list[Reply]:
    """Return the replies to some prompts, in order."""
    replies: dict[int, Reply] = {}
    judge.ask([f"prompt {index}" for index in range(count)], replies.__setitem__)
    return [replies[index] for index in range(count)]


def judged(judge: Judge, folder: Path, **changes: Any) -> pd.DataFrame:
    return judge_answers(items(), judge, JudgementCache(folder), read_rubric("v1"), **{"max_missing": 0.0} | changes)
