"""Recurrences and Newton-Schulz steps in C for CPUs, in float32 and float64; importing this compiles nothing yet."""

from ..refusals import refuse_native as refuse
from .fast_weights import fast_weights
from .gated_norm import gated_norm
from .newton_schulz import newton_schulz
from .resolvent import causal_resolvent_apply, causal_resolvent_diagonal
from .short_convolution import short_convolution

__all__ = [
    "causal_resolvent_apply",
    "causal_resolvent_diagonal",
    "fast_weights",
    "gated_norm",
    "newton_schulz",
    "refuse",
    "short_convolution",
]
