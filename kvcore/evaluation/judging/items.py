"""What is judged: answers under truncation, and the anchors of the scale, in an order that tells nothing."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvcore.data.examples import Example
from kvcore.evaluation.generation import Answer

Anchor = Literal["untruncated", "reference"]
NO_POINT = -1


@dataclass(frozen=True)
class JudgedItem:
    """One answer with what it is compared with.

    Attributes:
        prompt: Index of the prompt.
        point: Index of the rank budget it was generated under; -1 for an anchor.
        anchor: None, or which anchor of the scale it is.
        question: What was asked.
        reference: The dataset's answer.
        answer: What is judged.
    """

    prompt: int
    point: int
    anchor: Anchor | None
    question: str
    reference: str
    answer: Answer


def judged_examples(examples: Sequence[Example], prompts: int | None) -> list[Example]:
    """Return the examples whose prompts are answered: the first of those that the seed has drawn.

    Args:
        examples: Examples in the order drawn by the seed.
        prompts: How many at most; None: all.
    """
    return list(examples[:prompts])


def anchor_prompts(prompts: int, share: float, seed: int) -> list[int]:
    """Return the indices of the prompts whose anchors are judged, drawn by the seed.

    Args:
        prompts: Number of prompts.
        share: Share of them, rounded up.
        seed: Seed of the draw.
    """
    count = min(prompts, math.ceil(share * prompts - 1e-9))
    return sorted(random.Random(f"anchors {seed}").sample(range(prompts), count))  # noqa: S311 - not a secret


def judged_items(
    examples: Sequence[Example],
    answers: Sequence[Sequence[Answer]],
    untruncated: Sequence[Answer],
    *,
    anchor_share: float,
    seed: int,
) -> list[JudgedItem]:
    """Return all that is judged, shuffled by the seed.

    Args:
        examples: The examples with a prompt and a response, the reference.
        answers: By point, an answer to each prompt.
        untruncated: The untruncated model's answer to each prompt.
        anchor_share: Share of the prompts whose untruncated answer and whose reference are judged, too.
        seed: Seed of the order, and of the draw of the anchors.
    """
    items = [
        _item(examples, prompt, point, None, answer)
        for point, given in enumerate(answers)
        for prompt, answer in enumerate(given)
    ]
    for prompt in anchor_prompts(len(examples), anchor_share, seed):
        items.append(_item(examples, prompt, NO_POINT, "untruncated", untruncated[prompt]))
        items.append(reference_item(examples, prompt))
    random.Random(f"order {seed}").shuffle(items)  # noqa: S311 - a reproducible order, not a secret
    return items


def reference_item(examples: Sequence[Example], prompt: int) -> JudgedItem:
    """Return the reference of a prompt as an answer to be judged."""
    return _item(examples, prompt, NO_POINT, "reference", Answer(examples[prompt].response, 0, ended=True))


def _item(examples: Sequence[Example], prompt: int, point: int, anchor: Anchor | None, answer: Answer) -> JudgedItem:
    example = examples[prompt]
    if example.prompt is None:
        raise ValueError(f"example {prompt} has no prompt")
    return JudgedItem(prompt, point, anchor, example.prompt, example.response, answer)
