"""When to ask again: exponential backoff with jitter, within a budget of time."""

import random
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 30.0


class Backoff:
    """Waits between the attempts at one request."""

    def __init__(self, budget_seconds: float, stopped: threading.Event) -> None:
        """Begin with nothing spent.

        Args:
            budget_seconds: Time from the first failure to the start of the last attempt.
            stopped: Ends a wait at once when it is set.
        """
        self._budget = budget_seconds
        self._stopped = stopped
        self._failures = 0
        self._first_failure: float | None = None

    def wait(self, wish: float | None = None, *, budget_seconds: float | None = None) -> bool:
        """Wait for the next attempt; return False, without waiting, if there is to be none.

        Args:
            wish: Seconds that the endpoint asks to wait at least; None: it does not say.
            budget_seconds: A smaller budget for this kind of failure.
        """
        now = time.monotonic()
        self._first_failure = now if self._first_failure is None else self._first_failure
        budget = self._budget if budget_seconds is None else min(self._budget, budget_seconds)
        delay = max(backoff_delay(self._failures, random.random()), wish or 0.0)  # noqa: S311
        self._failures += 1
        if now + delay > self._first_failure + budget:
            return False
        return not self._stopped.wait(delay)


def backoff_delay(failures: int, chance: float) -> float:
    """Return the seconds to wait after a number of earlier failures.

    Args:
        failures: How often it has failed before.
        chance: In [0, 1); spreads clients that failed together.
    """
    return min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(failures, 30)) * (0.5 + 0.5 * chance)


def wished_delay(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds that an answer's Retry-After asks to wait, given as seconds or as a date."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())
