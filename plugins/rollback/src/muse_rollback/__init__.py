"""Finds damage by training loss and canary text, and rolls back."""

__version__ = "0.1.0"
