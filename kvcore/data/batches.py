"""Token batches: examples of similar length together, right-padded, with a mask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

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
        target_bytes: For each example, UTF-8 bytes of the text of its targets.
        examples: Index of each example among those that were batched.
    """

    tokens: Tensor
    mask: Tensor
    targets: Tensor
    token_count: int
    target_bytes: tuple[int, ...]
    examples: tuple[int, ...]


class Batches(Sequence[Batch]):
    """Batches that are put together when they are asked for, so that they take no memory beforehand.

    Attributes:
        token_count: Number of real tokens in all of them.
    """

    def __init__(self, encoded: Sequence[EncodedExample], groups: Sequence[Sequence[int]], target: str) -> None:
        """Keep which examples go together.

        Args:
            encoded: The examples.
            groups: Indices of the examples of each batch.
            target: Which tokens are scored: `all` or `response`.
        """
        self._encoded = encoded
        self._groups = groups
        self._target = target
        self.token_count = sum(len(encoded[index]) for group in groups for index in group)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._groups)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> "Batches": ...
    def __getitem__(self, index: int | slice) -> "Batch | Batches":
        """Put a batch together."""
        if isinstance(index, slice):
            return Batches(self._encoded, self._groups[index], self._target)
        return _collate({number: self._encoded[number] for number in self._groups[index]}, self._target)


def make_batches(encoded: Sequence[EncodedExample], *, batch_tokens: int, target: str = "all") -> Batches:
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
    return Batches(encoded, sorted(groups, key=min), target)


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


def _collate(numbered: Mapping[int, EncodedExample], target: str) -> Batch:
    examples = list(numbered.values())
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
        target_bytes=tuple(example.target_bytes(target) for example in examples),
        examples=tuple(numbered),
    )
