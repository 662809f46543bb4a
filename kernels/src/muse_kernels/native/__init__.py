"""Recurrences in C for CPUs, in float32 and float64; importing this compiles nothing yet."""

from ..refusals import refuse_native as refuse
from .fast_weights import fast_weights
from .resolvent import causal_resolvent_apply, causal_resolvent_diagonal

__all__ = ["causal_resolvent_apply", "causal_resolvent_diagonal", "fast_weights", "refuse"]
