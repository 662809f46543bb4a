"""Bounds the size of fast weights by what is usual: a filter for MUSE."""
