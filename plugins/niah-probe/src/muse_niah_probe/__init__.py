"""Needle-in-a-haystack probe of a model's memory while it trains."""

__version__ = "0.2.0"
