"""A filter of fast weights that keeps the strong modes of a basis of zeta zeros."""

__version__ = "0.2.0"
