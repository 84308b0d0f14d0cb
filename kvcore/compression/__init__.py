"""From spectra to ranks, and ranks into the model."""
