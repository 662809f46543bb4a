"""Common characters as tokens: a tokenizer for MUSE."""
