"""kvcore measures how compressible the key/value cache of a language model is on given data."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcore.spectrum.measurement import Measurement, measure

__all__ = ["Measurement", "measure"]


def __getattr__(name: str) -> object:
    """Import what needs torch when it is asked for: it takes seconds, and settings are checked without it."""
    if name in __all__:
        from kvcore.spectrum import measurement

        return getattr(measurement, name)
    raise AttributeError(f"module 'kvcore' has no attribute {name!r}")
