"""Text and tasks: from a source to batches."""

LEAST_VOCABULARY = 300
"""Of byte-pair encoding: 256 bytes, the separator and a few merges."""
