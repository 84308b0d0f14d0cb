"""What judging would cost, before an answer exists."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from kvcore.data.examples import Example
from kvcore.evaluation.judging.items import anchor_prompts
from kvcore.evaluation.judging.rubric import Rubric


@dataclass(frozen=True)
class JudgingCost:
    """What judging costs, if no reply is cached and all answers differ.

    Attributes:
        requests: Prompts to send; retries are not counted.
        prompt_tokens: Tokens of these prompts, all answers at their longest; about, for JSON quotes some characters.
        reply_tokens: Tokens of the replies, all at their longest.
    """

    requests: int
    prompt_tokens: int
    reply_tokens: int

    def __str__(self) -> str:
        """Say it in words."""
        tokens = f"about {self.prompt_tokens:,} tokens in prompts and at most {self.reply_tokens:,} in replies"
        return f"at most {self.requests:,} requests, {tokens}"

    def __add__(self, other: "JudgingCost") -> "JudgingCost":
        """Return the cost of both, for example of two cells."""
        return JudgingCost(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.reply_tokens + other.reply_tokens,
        )


NO_COST = JudgingCost(0, 0, 0)


def judging_cost(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    rubric: Rubric,
    *,
    points: int,
    max_new_tokens: int,
    max_reply_tokens: int,
    anchor_share: float,
    seed: int,
) -> JudgingCost:
    """Return what judging one cell costs at most.

    What answers will say, and so whether they are cached, empty or alike, is not known beforehand: each counts as
    one of `max_new_tokens` tokens. The untruncated answers are those of one of the points, so that as anchors they cost
    nothing more. Without anchors a reference is judged all the same, to see that the judge is there.

    Args:
        examples: Those whose prompts are answered.
        tokenizer: Counts the tokens; the judge's own may count others.
        rubric: How the judge is asked.
        points: Number of rank budgets answers are generated under, that of the untruncated model among them.
        max_new_tokens: Longest answer.
        max_reply_tokens: Longest reply.
        anchor_share: See `judged_items`.
        seed: See `judged_items`.
    """

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    references = anchor_prompts(len(examples), anchor_share, seed) or [0]
    cost = NO_COST
    for index, example in enumerate(examples):
        question = example.prompt or ""
        longest = count(rubric.prompt(question, example.response, "")) + max_new_tokens
        cost += JudgingCost(points, points * longest, points * max_reply_tokens)
        if index in references:
            prompt = rubric.prompt(question, example.response, example.response)
            cost += JudgingCost(1, count(prompt), max_reply_tokens)
    return cost
