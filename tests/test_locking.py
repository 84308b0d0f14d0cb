"""Locks, as those see them who do not hold them."""

from pathlib import Path
from typing import Any

import filelock
import pytest

from kvcore.locking import is_locked, locked


def refuse(*_: Any, **__: Any) -> None:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("ours", [True, False])
def test_a_lock_is_seen_while_it_is_held(ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by another user, who may only read its file; to root, who may run this, nothing can be forbidden."""
    path = tmp_path / "cell.lock"
    assert not is_locked(path)
    with locked(path):
        if not ours:
            monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
        assert is_locked(path)
    assert not is_locked(path)
