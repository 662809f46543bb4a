"""Multi-query associative recall: pairs are read once and asked for later."""

__version__ = "0.2.0"
