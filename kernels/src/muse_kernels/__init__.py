"""Tridiagonal resolvents and fast weights as pure functions of tensors, exact on every backend.

>>> import torch
>>> from muse_kernels import causal_resolvent_diagonal
>>> theta, final = causal_resolvent_diagonal(torch.zeros(2, 8), 1.0, 1.0, 0.5 + 0.1j)
>>> theta.shape, final.shape
(torch.Size([2, 8]), torch.Size([2]))
"""

__version__ = "0.2.0"

from .debugging import debug
from .dispatch import Choice, chosen
from .fast_weights import fast_weights
from .gated_norm import gated_norm
from .request import KernelRequest
from .resolvent import causal_resolvent_apply, causal_resolvent_diagonal, resolvent_diagonal
from .short_convolution import short_convolution
from .short_convolution_arguments import unit_length

__all__ = [
    "Choice",
    "KernelRequest",
    "causal_resolvent_apply",
    "causal_resolvent_diagonal",
    "chosen",
    "debug",
    "fast_weights",
    "gated_norm",
    "resolvent_diagonal",
    "short_convolution",
    "unit_length",
]
