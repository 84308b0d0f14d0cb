"""From sources of text to token batches."""
