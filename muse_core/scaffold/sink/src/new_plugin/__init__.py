"""Losses in a table: a sink for MUSE."""
