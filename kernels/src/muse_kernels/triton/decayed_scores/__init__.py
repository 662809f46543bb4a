"""Scores under a decay per channel by Triton kernels."""

from .operator import decayed_scores

__all__ = ["decayed_scores"]
