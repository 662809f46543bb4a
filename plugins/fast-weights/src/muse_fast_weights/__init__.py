"""Dissipative associative memory: fast weights by the Hebbian or the delta rule."""

__version__ = "0.2.0"
