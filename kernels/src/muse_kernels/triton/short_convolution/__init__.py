"""The short convolution by Triton kernels."""

from .operator import short_convolution

__all__ = ["short_convolution"]
