"""What judging would cost, before an answer exists."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from kvcore.data.examples import Example
from kvcore.evaluation.judging.cache import JudgementCache
from kvcore.evaluation.judging.items import anchor_prompts
from kvcore.evaluation.judging.judge import Judge
from kvcore.evaluation.judging.rubric import Rubric


@dataclass(frozen=True)
class JudgingCost:
    """What a set of items costs at most.

    Attributes:
        requests: Prompts to send; retries are not counted.
        prompt_tokens: Tokens of these prompts, all answers at their longest.
        reply_tokens: Tokens of the replies, all at their longest.
        cached: Requests that are not needed, because their replies are there.
    """

    requests: int
    prompt_tokens: int
    reply_tokens: int
    cached: int

    def __str__(self) -> str:
        """Say it in words."""
        tokens = f"{self.prompt_tokens:,} tokens in prompts and {self.reply_tokens:,} in replies"
        return f"at most {self.requests:,} requests, {tokens}"

    def __add__(self, other: "JudgingCost") -> "JudgingCost":
        """Return the cost of both, for example of two cells."""
        return JudgingCost(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.reply_tokens + other.reply_tokens,
            self.cached + other.cached,
        )


NO_COST = JudgingCost(0, 0, 0, 0)


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
    untruncated_is_a_point: bool,
    judge: Judge | None = None,
    cache: JudgementCache | None = None,
) -> JudgingCost:
    """Return what judging one cell costs at most.

    What answers will say, and so whether they are cached, empty or alike, is not known beforehand: each counts as
    one of `max_new_tokens` tokens. The references are known, so that theirs are looked up in the cache.

    Args:
        examples: Those whose prompts are answered.
        tokenizer: Counts the tokens; the judge's own may count others.
        rubric: How the judge is asked.
        points: Number of rank budgets answers are generated under.
        max_new_tokens: Longest answer.
        max_reply_tokens: Longest reply.
        anchor_share: See `judged_items`.
        seed: See `judged_items`.
        untruncated_is_a_point: Whether one of the points is the untruncated model, whose answers as anchors then
            cost nothing more.
        judge: With `cache`: whose replies are looked up.
        cache: Where they are.
    """

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    anchors = anchor_prompts(len(examples), anchor_share, seed)
    cost = NO_COST
    for index, example in enumerate(examples):
        answers = points + (index in anchors and not untruncated_is_a_point)
        question = example.prompt or ""
        longest = count(rubric.prompt(question, example.response, "")) + max_new_tokens
        cost += JudgingCost(answers, answers * longest, answers * max_reply_tokens, 0)
        if index in anchors:
            prompt = rubric.prompt(question, example.response, example.response)
            if judge and cache and cache.find(cache.key(rubric, judge.identity(), prompt)) is not None:
                cost += JudgingCost(0, 0, 0, 1)
            else:
                cost += JudgingCost(1, count(prompt), max_reply_tokens, 0)
    return cost
