"""Teacher-forced perplexity: each example on its own, no padding counted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvcore.data.batches import Advance, Batch, unobserved
from kvcore.model.forward import hidden_states, inference, logits
from kvcore.schema import UserError

# Logits exist for this many numbers at a time (256 MB in float32), whatever the vocabulary.
_LOGITS_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class LikelihoodSum:
    """What perplexity is made of.

    Attributes:
        nll: Negative log-likelihood of all targets, natural logarithm, summed in float64.
        tokens: Number of targets.
        target_bytes: UTF-8 bytes of their text.
    """

    nll: float
    tokens: int
    target_bytes: int

    @property
    def mean_nll(self) -> float:
        """Negative log-likelihood per target."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        """Exponential of the mean; infinite where float64 cannot hold it."""
        try:
            return math.exp(self.mean_nll)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of the targets, which compares across tokenizers; NaN if they have no text."""
        return self.nll / math.log(2) / self.target_bytes if self.target_bytes else math.nan


def sum_likelihood(model: PreTrainedModel, batches: Sequence[Batch], advance: Advance = unobserved) -> LikelihoodSum:
    """Score the targets of all batches.

    Args:
        model: A causal language model.
        batches: Token batches.
        advance: Told the number of tokens of each batch when it is done.

    Raises:
        UserError: The batches have no target, or a likelihood is NaN.
    """
    nll = 0.0
    tokens = 0
    with inference(model):
        for batch in batches:
            losses = target_losses(model, batch)
            nll += float(losses.double().sum())
            tokens += len(losses)
            advance(batch.token_count)
    if tokens == 0:
        raise UserError("no token to predict: every example has one token only, or no response")
    if math.isnan(nll):
        raise UserError("the model computes NaN: its weights hold NaN, or model.dtype is too narrow for it")
    return LikelihoodSum(nll, tokens, sum(batch.target_bytes for batch in batches))


def target_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the negative log-likelihood of each target of a batch.

    Returns:
        (targets,) float32, by example and position.
    """
    states = hidden_states(model, batch.tokens, batch.mask)
    targets = batch.targets[:, 1:].to(states.device)
    states = states[:, :-1][targets]
    expected = batch.tokens[:, 1:].to(states.device)[targets]
    at_once = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    losses = [
        _negative_log_softmax(logits(model, some_states), some_expected)
        for some_states, some_expected in zip(states.split(at_once), expected.split(at_once), strict=True)
    ]
    return torch.cat(losses)


def _negative_log_softmax(scores: Tensor, expected: Tensor) -> Tensor:
    """Return -log_softmax(scores) at the expected tokens, (positions,) float32.

    Not torch's log_softmax: on a CPU it adds up the 262,144 terms of Gemma's vocabulary one after the other in
    float32, which made perplexity 2.4e-5 too small; logsumexp adds in pairs and was within 4e-8.
    """
    return scores.logsumexp(-1) - scores.gather(1, expected[:, None])[:, 0]
