"""Handles non-finite gradients: replace, skip or halt."""

__version__ = "0.1.0"
