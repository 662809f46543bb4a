"""Every operation by plain torch: no compiler, exact adjoints, gradients of any order, CPU or GPU."""

from ..refusals import refuse_torch as refuse
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
