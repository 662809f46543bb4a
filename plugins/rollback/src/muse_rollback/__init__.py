"""Finds damage by training loss and canary text, and rolls back."""

__version__ = "0.2.0"
