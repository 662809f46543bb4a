"""Trace attention by Triton kernels that stream the softmax and the sum of its squares."""

from .operator import trace_attention

__all__ = ["trace_attention"]
