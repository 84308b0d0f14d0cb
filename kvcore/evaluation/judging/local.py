"""A judge in the same process: the score that a causal language model expects of itself."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvcore.evaluation.judging.judge import UNPARSABLE, Judge, Receive, Reply, failure
from kvcore.evaluation.judging.rubric import HIGHEST, LOWEST, SCORES
from kvcore.model.forward import hidden_states, inference, logits
from kvcore.schema import UserError

_REPLY_START = '{"score": '
# Of all ten scores together. Below, the model would say something else, and their ratios mean nothing.
_LEAST_PROBABILITY = 0.1


@dataclass(frozen=True)
class ScoreTokens:
    """How a tokenizer writes the beginning of a reply and the scores after it.

    Attributes:
        stem: Token ids that all replies begin with.
        scores: Token ids of each score after the stem, one or two.
    """

    stem: tuple[int, ...]
    scores: dict[int, tuple[int, ...]]

    @property
    def shared(self) -> tuple[int, ...]:
        """Token ids of the score that another one begins with: of 1, where 10 is written as 1 and 0."""
        return next((tokens[:1] for tokens in self.scores.values() if len(tokens) == 2), ())


class LocalJudge(Judge):
    """Reads the score off one forward pass for each prompt, so that nothing is drawn and nothing parsed.

    The prompt is the user's turn of the tokenizer's chat template where it has one, and the reply is given up to
    where its score would come. The score is the expectation sum_s s P(s) / sum_s P(s) over s = 1 to 10. P(s) is
    the probability of the tokens that write s. Where 10 is written with the tokens of 1 and 0, P(10) = P(1) P(0 | 1)
    and P(1) is that of a 1 with no 0 after it: P(1) (1 - P(0 | 1)). Where all P(s) together are below 0.1, there is no
    score, and the reply counts as unparsable.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        revision: str,
        context: int,
        batch_tokens: int,
    ) -> None:
        """Keep the model.

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer.
            revision: Hash of the weights.
            context: Longest input of the model, in tokens.
            batch_tokens: Tokens a batch, padding included; a longer prompt is a batch of its own.

        Raises:
            UserError: The tokenizer does not write the scores in a way that can be told apart.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._revision = revision
        self._context = context
        self._batch_tokens = batch_tokens
        self._tokens = score_tokens(tokenizer)

    def identity(self) -> dict[str, Any]:
        """Return the weights and their arithmetic."""
        return {
            "name": "transformers",
            "revision": self._revision,
            "dtype": str(self._model.dtype).split(".")[-1],
            "attention": self._model.config._attn_implementation,
        }

    def ask(self, prompts: Sequence[str], receive: Receive) -> None:
        """Score each prompt; those that the context cannot hold are failures."""
        fitting: dict[int, list[int]] = {}
        for index, prompt in enumerate(prompts):
            tokens = self._input(prompt)
            if len(tokens) <= self._context:
                fitting[index] = tokens
            else:
                receive(index, failure(f"prompt of {len(tokens)} tokens, context of {self._context}"))
        for group in self._groups(fitting):
            with inference(self._model):
                probabilities = self._probabilities([fitting[index] for index in group])
            for index, probability in zip(group, probabilities, strict=True):
                receive(index, _reply(probability, len(fitting[index])))

    def _input(self, prompt: str) -> list[int]:
        """Return the token ids of the prompt, the reply's stem, and the score that another one begins with."""
        tokenizer, text = self._tokenizer, f"{prompt}\n\n"
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}]
            text = str(
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
            )
        tokens = tokenizer(text, add_special_tokens=not tokenizer.chat_template, verbose=False)["input_ids"]
        return [*tokens, *self._tokens.stem, *self._tokens.shared]

    def _groups(self, inputs: dict[int, list[int]]) -> Iterator[list[int]]:
        """Yield the indices of the prompts of each batch, by length."""
        group: list[int] = []
        for index in sorted(inputs, key=lambda index: len(inputs[index])):
            if group and len(inputs[index]) * (len(group) + 1) > self._batch_tokens:
                yield group
                group = []
            group.append(index)
        if group:
            yield group

    def _probabilities(self, inputs: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Return the probability of each score after each input."""
        lengths = torch.tensor([len(tokens) for tokens in inputs])
        tokens = torch.zeros((len(inputs), int(lengths.max())), dtype=torch.long)
        for row, given in enumerate(inputs):
            tokens[row, : len(given)] = torch.tensor(given)
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        states = hidden_states(self._model, tokens, mask)
        last = (lengths - 1).to(states.device)
        rows = torch.arange(len(inputs), device=states.device)
        after_all = self._log_softmax(states[rows, last])
        if not self._tokens.shared:
            return [self._scores(row, None) for row in after_all]
        after_stem = self._log_softmax(states[rows, last - 1])
        return [self._scores(first, second) for first, second in zip(after_stem, after_all, strict=True)]

    def _log_softmax(self, states: Tensor) -> Tensor:
        """Return (batch, vocabulary) float64 log-probabilities from (batch, hidden_size)."""
        return logits(self._model, states).double().log_softmax(-1).cpu()

    def _scores(self, first: Tensor, second: Tensor | None) -> dict[int, float]:
        """Return the probability of each score from log-probabilities after the stem, and after the shared token."""
        found: dict[int, float] = {}
        longer = 0.0
        for score, tokens in self._tokens.scores.items():
            found[score] = float(first[tokens[0]].exp())
            if second is not None and len(tokens) == 2:
                longer = float(second[tokens[1]].exp())
                found[score] *= longer
        for score, tokens in self._tokens.scores.items():
            if tokens == self._tokens.shared:
                found[score] *= 1 - longer
        return found


def score_tokens(tokenizer: PreTrainedTokenizerBase) -> ScoreTokens:
    """Find how a tokenizer writes the scores.

    Raises:
        UserError: Neither has each score a token of its own, nor is 10 written with that of 1 and one more.
    """
    replies = [tuple(tokenizer(f"{_REPLY_START}{score}", add_special_tokens=False)["input_ids"]) for score in SCORES]
    length = next((position for position, tokens in enumerate(zip(*replies, strict=False)) if len(set(tokens)) > 1), 0)
    scores = {score: tokens[length:] for score, tokens in zip(SCORES, replies, strict=True)}
    single = {tokens for tokens in scores.values() if len(tokens) == 1}
    if len(single) != len(SCORES) and not (len(single) == len(SCORES) - 1 and scores[10][:-1] == scores[1]):
        raise UserError("judge.model: its tokenizer does not write 1 to 10 as one token for each digit or number")
    return ScoreTokens(replies[0][:length], scores)


def _reply(probability: dict[int, float], prompt_tokens: int) -> Reply:
    total = sum(probability.values())
    if not math.isfinite(total):
        return failure("the judge computes NaN")
    text = json.dumps({str(score): float(f"{share:.6g}") for score, share in probability.items()})
    if total < _LEAST_PROBABILITY:
        return Reply(None, UNPARSABLE, text, prompt_tokens, 0)
    expectation = sum(score * share for score, share in probability.items()) / total
    # Rounding can leave the scale where all probability lies at one of its ends.
    return Reply(min(max(expectation, float(LOWEST)), float(HIGHEST)), None, text, prompt_tokens, 0)
