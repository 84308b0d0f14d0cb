"""Streaming singular value decomposition of keys and values, and what it yields."""

from kvcore.spectrum.measurement import Measurement, measure
from kvcore.spectrum.streaming import Spectrum, StreamingSVD
from kvcore.spectrum.triangular import TriangularSVD

__all__ = ["Measurement", "Spectrum", "StreamingSVD", "TriangularSVD", "measure"]
