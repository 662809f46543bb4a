"""What the gated norm accepts."""

import torch
from torch import Tensor


def in_double(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors is of double precision, and so is what they are computed in."""
    return any(x is not None and x.dtype in (torch.float64, torch.complex128) for x in tensors)


def check_gated_norm(x: Tensor, weight: Tensor | None, gate: Tensor | None) -> torch.dtype:
    """The dtype of the result; ValueError naming the argument and the shapes where they do not fit."""
    if x.ndim < 1 or not (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"gated_norm: x must be floating or complex (..., F), got {x.dtype} {tuple(x.shape)}")
    features = x.shape[-1] * (2 if x.is_complex() else 1)
    if weight is not None and tuple(weight.shape) != (features,):
        raise ValueError(f"gated_norm: weight must be ({features},) beside x {tuple(x.shape)}, {tuple(weight.shape)}")
    if gate is not None and gate.shape != x.shape:
        raise ValueError(f"gated_norm: gate must be {tuple(x.shape)} as x, got {tuple(gate.shape)}")
    return x.real.dtype if gate is None else gate.dtype
