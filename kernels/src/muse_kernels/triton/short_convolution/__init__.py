"""Short convolutions by Triton kernels."""

from .operator import causal_convolution, short_convolution

__all__ = ["causal_convolution", "short_convolution"]
