"""Grids: many cells as one list on disk, run by whoever takes them, and where each of them is."""

from kvcore.grid.states import states

__all__ = ["states"]
