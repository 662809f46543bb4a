"""Compression of trained models: Koopman modes, low rank, pruning and quantised matrices, with distillation."""

__version__ = "0.2.0"
