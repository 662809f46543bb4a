"""Fast weights by Triton kernels, chunk by chunk."""

from .operator import fast_weights

__all__ = ["fast_weights"]
