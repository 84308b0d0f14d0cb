"""Loading language models and knowing where they keep their keys and values."""
