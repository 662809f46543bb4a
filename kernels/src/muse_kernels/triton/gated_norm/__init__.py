"""The gated normalisation by Triton kernels."""

from .operator import gated_norm

__all__ = ["gated_norm"]
