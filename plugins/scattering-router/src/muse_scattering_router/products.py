"""Products of rows with the matrix of their expert.

Letters: R rows sorted by expert, E experts, I inputs, O outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

HAS_TRITON = find_spec("triton") is not None
"""Asked once: torch.compile does not trace the question."""
ALIGNMENT = 8
"""bf16 numbers in 16 bytes, to which grouped_mm wants strides aligned."""


def grouped(rows: Tensor, matrices: Sequence[Tensor], ends: Tensor) -> Tensor:
    """rows (R, I), E matrices (O, I), ``ends`` (E,) int32 where each expert's rows end → (R, O).

    Rows after the last end hold anything, or zero. torch's grouped_mm where it serves, otherwise a loop over experts.
    """
    if serves(rows.device, rows.dtype, matrices[0]):
        stacked: Tensor = _Stacked.apply(rows.dtype, *matrices)
        return F.grouped_mm(rows, stacked.transpose(1, 2), offs=ends)
    counts = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    pieces = rows.split([*counts, len(rows) - sum(counts)])
    products = [piece @ matrix.to(rows.dtype).T for piece, matrix in zip(pieces, matrices)]
    return torch.cat([*products, rows.new_zeros(len(pieces[-1]), matrices[0].shape[0])])


def serves(device: torch.device, dtype: torch.dtype, matrix: Tensor) -> bool:
    """Whether torch's grouped_mm takes these: bf16 on a GPU of compute capability 9.0 on, aligned rows."""
    return (
        device.type == "cuda"
        and dtype == torch.bfloat16
        and hasattr(F, "grouped_mm")
        and _capability(device) >= (9, 0)
        and all(size % ALIGNMENT == 0 for size in matrix.shape)
    )


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def stack(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """torch.stack in another dtype in one pass and one launch."""
    if torch.compiler.is_compiling():  # one launch as it is; torch 2.11 loses the gradient of what is filled in place
        return torch.stack(tuple(matrices)).to(dtype)
    stacked = torch.empty(len(matrices), *matrices[0].shape, dtype=dtype, device=matrices[0].device)
    torch._foreach_copy_(list(stacked.unbind()), list(matrices))
    return stacked


class _Stacked(torch.autograd.Function):
    """``stack``, differentiable."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *matrices: Tensor) -> Tensor:
        ctx.dtype = matrices[0].dtype
        return stack(matrices, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return (None, *gradient.to(ctx.dtype).unbind())
