"""From sources of text to token batches."""

from typing import Any

Row = dict[str, Any]  # a column's name and what stands in it
