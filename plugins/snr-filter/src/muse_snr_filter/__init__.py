"""A signal-to-noise filter of fast weights."""

__version__ = "0.1.0"
