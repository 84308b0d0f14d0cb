"""A mirror of finished and failed cells in a tracker, made from what is on disk."""
