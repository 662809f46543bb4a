"""Gates: what they do, whether they matter, and a loss that makes them decide."""

__version__ = "0.2.0"
