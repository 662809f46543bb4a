"""Sums, written out: a source of text for MUSE."""
