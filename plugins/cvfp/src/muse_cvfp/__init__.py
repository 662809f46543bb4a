"""Fixed-point context learning: a recurrent context trained by parallel iteration, then held fixed under a language
model."""

__version__ = "0.2.0"
