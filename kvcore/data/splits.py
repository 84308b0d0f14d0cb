"""Splits: examples to calibrate on, and others, kept apart from them, to evaluate on."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kvcore.data.examples import Example
from kvcore.schema import SettingError


@dataclass(frozen=True)
class Split:
    """Examples that serve one purpose.

    Attributes:
        examples: In the order in which they are read.
        numbers: Place of each among the usable examples of its dataset, from 0.
    """

    examples: tuple[Example, ...]
    numbers: tuple[int, ...]

    def first(self, count: int | None, setting: str) -> "Split":
        """Return the first `count` examples; None: all.

        Raises:
            SettingError: There are fewer; names `setting`.
        """
        if count is not None and count > len(self.examples):
            raise SettingError(setting, count, f"this split of the dataset has {len(self.examples)}")
        return Split(self.examples[:count], self.numbers[:count])

    def without(self, others: Collection[Example]) -> "Split":
        """Return the examples that are none of the others, but for upper case and white space."""
        known = {_bare(example) for example in others}
        kept = [
            (example, number)
            for example, number in zip(self.examples, self.numbers, strict=True)
            if _bare(example) not in known
        ]
        return Split(tuple(example for example, _ in kept), tuple(number for _, number in kept))


def split_examples(examples: Sequence[Example], *, share: float, seed: int) -> tuple[Split, Split]:
    """Draw an order by the seed, and cut it into examples to calibrate on and examples to evaluate on.

    Datasets of the same length are cut alike, so that parallel texts in several languages stay together.

    Args:
        examples: All usable examples of a dataset.
        share: Share of them to evaluate on, rounded half up; at least one, unless it is 0.
        seed: Draws the order.

    Raises:
        SettingError: Nothing would be left to calibrate on.
    """
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)  # noqa: S311 - a reproducible draw, not a secret
    held_out = max(1, int(share * len(order) + 0.5)) if share else 0
    if held_out >= len(order):
        allowed = f"{len(order)} examples leave none to calibrate on; 0 evaluates on those that calibrate"
        raise SettingError("evaluation.share", share, allowed)
    calibration, evaluation = order[: len(order) - held_out], order[len(order) - held_out :]
    return _split_of(examples, calibration), _split_of(examples, evaluation)


def _bare(example: Example) -> str:
    return " ".join(f"{example.prompt or ''} {example.response}".casefold().split())


def _split_of(examples: Sequence[Example], numbers: Sequence[int]) -> Split:
    return Split(tuple(examples[number] for number in numbers), tuple(numbers))
