"""Every operation as Triton kernels in float32; importing this imports triton."""

from ..refusals import refuse_triton as refuse
from .decayed_scores import decayed_scores
from .deep_memory import deep_memory
from .fast_weights import fast_weights
from .fast_weights.part import fast_weights_of_part
from .gated_norm import gated_norm
from .resolvent import causal_resolvent_apply, causal_resolvent_diagonal, resolvent_diagonal
from .resolvent.part_of_apply import apply_to_part
from .short_convolution import causal_convolution, short_convolution
from .trace_attention import trace_attention

# How each computes a part of the tokens, of which other processes have the others.
causal_resolvent_apply.divided = apply_to_part
fast_weights.divided = fast_weights_of_part

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
