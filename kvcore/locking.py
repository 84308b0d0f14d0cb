"""One process at a time: locks that end with the process that holds them."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_MOMENT = 1.0  # seconds, longer than `is_locked` holds a lock


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock.

    Args:
        path: Its file, which stays.
        wait: Whether to wait until the process that holds it lets go of it or ends.

    Raises:
        TimeoutError: Another process holds it, and `wait` is not set.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else _MOMENT)
    except Timeout as error:
        raise TimeoutError(f"{path} is locked by another process") from error
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Say whether a process holds a lock, as far as this user may know."""
    if not path.is_file():
        return False
    try:
        with FileLock(path).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # not ours to write, such as of another user
        return _seen_locked(path)


def _seen_locked(path: Path) -> bool:
    """Say whether a process holds a lock of which this user may only read the file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False
