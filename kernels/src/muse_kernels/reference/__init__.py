"""Every operation in float64, written as its definition; slow, and what the other backends are compared with."""

from ..refusals import refuse_reference as refuse
from .decayed_scores import decayed_scores
from .deep_memory import deep_memory
from .fast_weights import fast_weights
from .gated_norm import gated_norm
from .resolvent import causal_resolvent_apply, causal_resolvent_diagonal, resolvent_diagonal
from .short_convolution import causal_convolution, short_convolution
from .trace_attention import trace_attention

__all__ = [
    "causal_convolution",
    "causal_resolvent_apply",
    "causal_resolvent_diagonal",
    "decayed_scores",
    "deep_memory",
    "fast_weights",
    "gated_norm",
    "refuse",
    "resolvent_diagonal",
    "short_convolution",
    "trace_attention",
]
