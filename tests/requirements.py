"""Parts of the machine that some tests need: missing ones skip the test, unless KVCORE_REQUIRE names them."""

import os

import pytest


def require(name: str, *, found: bool, reason: str) -> None:
    """Skip the calling test or module where something is not there; fail where KVCORE_REQUIRE says it must be.

    Args:
        name: What KVCORE_REQUIRE, a list separated by commas, calls it.
        found: Whether it is there.
        reason: What is missing and how to get it.
    """
    if found:
        return
    if name in os.environ.get("KVCORE_REQUIRE", "").split(","):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)
