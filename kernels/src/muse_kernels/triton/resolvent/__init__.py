"""The three operations of a tridiagonal resolvent by Triton kernels."""

from .causal_resolvent_apply import causal_resolvent_apply
from .causal_resolvent_diagonal import causal_resolvent_diagonal
from .resolvent_diagonal import resolvent_diagonal

__all__ = ["causal_resolvent_apply", "causal_resolvent_diagonal", "resolvent_diagonal"]
