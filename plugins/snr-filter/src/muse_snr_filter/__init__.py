"""A signal-to-noise filter of fast weights."""

__version__ = "0.2.0"
