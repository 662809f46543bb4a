"""Tridiagonal resolvents and fast weights as pure functions of tensors, exact on every backend.

>>> import torch
>>> from muse_kernels import causal_resolvent_diagonal
>>> theta, final = causal_resolvent_diagonal(torch.zeros(2, 8), 1.0, 1.0, 0.5 + 0.1j)
>>> theta.shape, final.shape
(torch.Size([2, 8]), torch.Size([2]))
"""

__version__ = "0.2.0"

from .arguments import debug, unit_length
from .decayed_arguments import DecayedScores
from .decayed_scores import decayed_scores
from .deep_memory import deep_memory
from .deep_memory_arguments import DeepMemoryState
from .dispatch import BackendSelection, select_backend
from .fast_weights import fast_weights
from .gated_norm import gated_norm
from .request import KernelRequest
from .resolvent import causal_resolvent_apply, causal_resolvent_diagonal, resolvent_diagonal
from .short_convolution import causal_convolution, short_convolution
from .trace_arguments import Carried, Traced
from .trace_attention import trace_attention

__all__ = [
    "BackendSelection",
    "Carried",
    "DecayedScores",
    "DeepMemoryState",
    "KernelRequest",
    "Traced",
    "causal_convolution",
    "causal_resolvent_apply",
    "causal_resolvent_diagonal",
    "select_backend",
    "debug",
    "decayed_scores",
    "deep_memory",
    "fast_weights",
    "gated_norm",
    "resolvent_diagonal",
    "short_convolution",
    "trace_attention",
    "unit_length",
]
