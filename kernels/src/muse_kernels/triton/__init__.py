"""Every operation as Triton kernels in float32; importing this imports triton."""

from ..refusals import refuse_triton as refuse
from .causal_resolvent_apply import causal_resolvent_apply
from .causal_resolvent_diagonal import causal_resolvent_diagonal
from .fast_weights import fast_weights
from .resolvent_diagonal import resolvent_diagonal

__all__ = ["causal_resolvent_apply", "causal_resolvent_diagonal", "fast_weights", "refuse", "resolvent_diagonal"]
