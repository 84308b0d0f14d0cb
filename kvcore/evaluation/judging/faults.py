"""What can go wrong between a judge's endpoint and us, and what is to be done about it."""

from dataclasses import dataclass
from typing import Literal

from openai import APIConnectionError, APIStatusError, APITimeoutError

from kvcore.evaluation.judging.retrying import wished_delay
from kvcore.schema import first_line

_LONGEST_DETAIL = 200
_LEAST_PART = 8  # characters of a key that are not repeated
_PASSING = {408, 409, 425, 429}

Kind = Literal["passing", "unreachable", "refused request", "key", "model", "lasting"]


@dataclass(frozen=True)
class Fault:
    """Why there is no reply.

    Attributes:
        kind: `passing`: another attempt may succeed. `unreachable`: the same, and no answer of any kind came.
            `refused request`: something in the request is not to the endpoint's liking. `key`, `model`: nor is
            the key, or the model. `lasting`: anything else.
        reason: One short line.
        wish: Seconds that the endpoint asks to wait.
    """

    kind: Kind
    reason: str
    wish: float | None = None

    @property
    def passes(self) -> bool:
        """Whether another attempt makes sense."""
        return self.kind in ("passing", "unreachable")


MALFORMED = Fault("passing", "the endpoint's answer is malformed")


def fault_of(error: Exception, key: str) -> Fault:
    """Say what an error of the client means.

    Args:
        error: What the client raised.
        key: Removed from what the endpoint says.
    """
    if isinstance(error, APITimeoutError):
        return Fault("unreachable", "the endpoint does not answer in time")
    if isinstance(error, APIConnectionError):
        cause = error.__cause__ or error
        return Fault("unreachable", one_line(f"no connection ({type(cause).__name__}: {first_line(cause)})", key))
    if not isinstance(error, APIStatusError):
        return MALFORMED
    body = error.body
    said = body.get("message") or body.get("detail") if isinstance(body, dict) else body
    reason = one_line(f"the endpoint answers {error.status_code}{f' ({said})' if said else ''}", key)
    return Fault(_kind(error), reason, wished_delay(error.response.headers))


def _kind(error: APIStatusError) -> Kind:
    status = error.status_code
    if status in (401, 402, 403) or error.code == "insufficient_quota":
        return "key"
    if status == 404 or error.code == "model_not_found":
        return "model"
    if status in _PASSING or status >= 500:
        return "passing"
    return "refused request" if status in (400, 422) else "lasting"


def without_key(text: str, key: str) -> str:
    """Return a text of the endpoint with the key, and any longer part of it, taken out."""
    for length in range(len(key), min(len(key), _LEAST_PART) - 1, -1) if key else ():
        for start in range(len(key) - length + 1):
            text = text.replace(key[start : start + length], "[key]")
    return text


def one_line(text: str, key: str) -> str:
    """Return a text of the endpoint as one short line without the key in it."""
    line = " ".join(without_key(text, key).split())
    return line if len(line) <= _LONGEST_DETAIL else f"{line[:_LONGEST_DETAIL]}..."
