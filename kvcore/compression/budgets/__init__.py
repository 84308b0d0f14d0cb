"""Rank budgets: from spectra, and what else was measured, to the rank of each layer."""
