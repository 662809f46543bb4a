"""Text and tasks: from a source to batches."""
