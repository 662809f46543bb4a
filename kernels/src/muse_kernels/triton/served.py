"""Refusal of what the resolvent kernels do not compute, when they are called directly."""

import torch

from ..dispatch import Request
from ..refusals import refuse_triton
from ..resolvent_arguments import Tridiagonal


def check_served(problem: Tridiagonal) -> None:
    """ValueError with the reason that `muse_kernels.chosen` would give."""
    dtype = "float64" if problem.dtype == torch.complex128 else "float32"
    reason = refuse_triton(Request(problem.operation, problem.energy.device.type, dtype))
    if reason is not None:
        raise ValueError(f"{problem.operation}: triton refuses: {reason}")
