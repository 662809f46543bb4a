"""Handles non-finite gradients: replace, skip or halt."""

__version__ = "0.2.0"
