"""kvcore measures how compressible the key/value cache of a language model is on given data."""

from kvcore.spectrum.measurement import Measurement, measure

__all__ = ["Measurement", "measure"]
