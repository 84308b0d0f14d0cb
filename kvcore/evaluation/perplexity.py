"""Teacher-forced perplexity: each example on its own, no padding counted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from kvcore.data.batches import Advance, Batch, unobserved
from kvcore.model.forward import hidden_states, inference, logits, positions_at_once
from kvcore.schema import UserError


@dataclass(frozen=True)
class Likelihoods:
    """What perplexity is made of, example by example.

    Attributes:
        examples: (examples,) index of each among those that were batched, ascending.
        nll: (examples,) negative log-likelihood of its targets, natural logarithm, summed in float64.
        tokens: (examples,) number of its targets.
        target_bytes: (examples,) UTF-8 bytes of their text.
    """

    examples: NDArray[np.int64]
    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    target_bytes: NDArray[np.int64]

    @property
    def total_nll(self) -> float:
        """Negative log-likelihood of all targets."""
        return float(self.nll.sum())

    @property
    def total_tokens(self) -> int:
        """Number of all targets."""
        return int(self.tokens.sum())

    @property
    def mean_nll(self) -> float:
        """Negative log-likelihood per target."""
        return self.total_nll / self.total_tokens

    @property
    def perplexity(self) -> float:
        """Exponential of the mean; infinite where float64 cannot hold it."""
        return exponential(self.mean_nll)

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of the targets, which compares across tokenizers; NaN if they have no text."""
        total_bytes = int(self.target_bytes.sum())
        return self.total_nll / math.log(2) / total_bytes if total_bytes else math.nan


def exponential(exponent: float) -> float:
    """Return e to this power; infinite where float64 cannot hold it."""
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf


def measure_likelihoods(model: PreTrainedModel, batches: Sequence[Batch], advance: Advance = unobserved) -> Likelihoods:
    """Score the targets of all batches.

    Args:
        model: A causal language model.
        batches: Token batches.
        advance: Told the number of tokens of each batch when it is done.

    Returns:
        One entry for each example that has a target.

    Raises:
        UserError: The batches have no target, or a likelihood is NaN.
    """
    rows: list[tuple[int, float, int, int]] = []
    with inference(model):
        for batch in batches:
            counts = batch.targets.sum(1).tolist()
            sums = [float(losses.double().sum()) for losses in target_losses(model, batch).split(counts)]
            rows += zip(batch.examples, sums, counts, batch.target_bytes, strict=True)
            advance(batch.token_count)
    rows = sorted(row for row in rows if row[2])
    if not rows:
        raise UserError("no token to predict: every example has one token only, or no response")
    examples, nll, tokens, target_bytes = zip(*rows, strict=True)
    if any(map(math.isnan, nll)):
        raise UserError("the model computes NaN: its weights hold NaN, or model.dtype is too narrow for it")
    counted = (np.array(column, dtype=np.int64) for column in (examples, tokens, target_bytes))
    examples_, tokens_, target_bytes_ = counted
    return Likelihoods(examples_, np.array(nll, dtype=np.float64), tokens_, target_bytes_)


def target_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the negative log-likelihood of each target of a batch.

    Returns:
        (targets,) float32, by example and position.
    """
    states = hidden_states(model, batch.tokens, batch.mask)
    targets = batch.targets[:, 1:].to(states.device)
    states = states[:, :-1][targets]
    expected = batch.tokens[:, 1:].to(states.device)[targets]
    at_once = positions_at_once(model)
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
