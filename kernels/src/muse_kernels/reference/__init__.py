"""Every operation in float64, written as its definition; slow, and what the other backends are compared with."""

from ..refusals import refuse_reference as refuse
from .causal_resolvent_apply import causal_resolvent_apply
from .causal_resolvent_diagonal import causal_resolvent_diagonal
from .fast_weights import fast_weights
from .resolvent_diagonal import resolvent_diagonal

__all__ = ["causal_resolvent_apply", "causal_resolvent_diagonal", "fast_weights", "refuse", "resolvent_diagonal"]
