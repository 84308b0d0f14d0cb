"""Token batches: examples of similar length together, right-padded, with a mask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcore.data.encoding import EncodedExample

Advance = Callable[[int], None]  # told the number of tokens of each batch when it is done


def unobserved(_tokens: int) -> None:
    """Tell nobody how far the work has come."""


@dataclass(frozen=True)
class Batch:
    """Examples side by side.

    Attributes:
        tokens: (batch, length) token ids, right-padded with 0.
        mask: (batch, length) bool, true for real tokens.
        targets: (batch, length) bool, true for tokens whose prediction is scored; never the first of an example.
        token_count: Number of real tokens.
        target_bytes: UTF-8 bytes of the text of the targets.
    """

    tokens: Tensor
    mask: Tensor
    targets: Tensor
    token_count: int
    target_bytes: int


def make_batches(encoded: Sequence[EncodedExample], *, batch_tokens: int, target: str = "all") -> list[Batch]:
    """Group examples by length, so that little is padded, up to a number of tokens a batch.

    The batches come in the order of their earliest example, not from short to long: what is read off
    part of the data (the convergence curve) then sees examples of all lengths.

    Args:
        encoded: The examples.
        batch_tokens: Tokens a batch, padding included; a longer example is a batch of its own.
        target: Which tokens are scored: `all` or `response`.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(encoded)), key=lambda index: len(encoded[index])):
        if not groups or len(encoded[index]) * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
        groups[-1].append(index)
    return [_collate([encoded[index] for index in group], target) for group in sorted(groups, key=min)]


def doubling_stretches(encoded: Sequence[EncodedExample], *, first_tokens: int) -> list[list[EncodedExample]]:
    """Cut the examples, in their order, into stretches that end at about 1, 2, 4, ... times `first_tokens` tokens.

    What was seen at the end of a stretch does not depend on how its examples are batched.

    Args:
        encoded: The examples.
        first_tokens: Tokens of the first stretch; each ends with the example that reaches its mark.
    """
    stretches: list[list[EncodedExample]] = [[]]
    total, mark = 0, first_tokens
    for example in encoded:
        if total >= mark:
            stretches.append([])
            while mark <= total:
                mark *= 2
        stretches[-1].append(example)
        total += len(example)
    return stretches


def count_tokens(batches: Sequence[Batch]) -> int:
    """Return the number of real tokens in the batches."""
    return sum(batch.token_count for batch in batches)


def _collate(examples: Sequence[EncodedExample], target: str) -> Batch:
    shape = (len(examples), max(len(example) for example in examples))
    tokens = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    targets = torch.zeros(shape, dtype=torch.bool)
    for row, example in enumerate(examples):
        tokens[row, : len(example)] = example.tokens
        mask[row, : len(example)] = True
        targets[row, example.first_target(target) : len(example)] = True
    return Batch(
        tokens=tokens,
        mask=mask,
        targets=targets,
        token_count=sum(len(example) for example in examples),
        target_bytes=sum(example.target_bytes(target) for example in examples),
    )
