"""What a judge is, whichever it is: something that replies to prompts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

UNPARSABLE = "unparsable"
REFUSED = "refused"
FAILED = "failed: "


@dataclass(frozen=True)
class Reply:
    """What came back for one prompt.

    Attributes:
        score: From 1 to 10; None if there is none.
        missing_reason: Why there is none: `unparsable`, `refused` or `failed: ...`.
        text: What the judge wrote; of a local judge, the probability of each score.
        prompt_tokens: Tokens of the prompt, as counted by the judge; None if it did not say.
        reply_tokens: Tokens of the reply.
    """

    score: float | None
    missing_reason: str | None = None
    text: str = ""
    prompt_tokens: int | None = None
    reply_tokens: int | None = None

    @property
    def failed(self) -> bool:
        """Whether the judge was not heard: another time it might be."""
        return self.missing_reason is not None and self.missing_reason.startswith(FAILED)


def failure(reason: str) -> Reply:
    """Return what stands for a reply that never came."""
    return Reply(None, FAILED + reason)


# Told each reply, with the index of its prompt, as soon as it is there.
Receive = Callable[[int, Reply], None]


class Judge(ABC):
    """Rates answers."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return all that could change a reply, apart from the prompt; part of every cache key."""

    @abstractmethod
    def ask(self, prompts: Sequence[str], receive: Receive) -> None:
        """Ask for a reply to each prompt.

        Args:
            prompts: What the judge is asked, in this order.
            receive: Called once for each prompt, possibly from several threads, but never at the same time.

        Raises:
            UserError: The judge cannot be used at all. What was received before stays received.
        """
