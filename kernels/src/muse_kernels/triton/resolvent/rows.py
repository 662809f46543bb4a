"""What the kernels take: rows as (B, H, N), complex numbers as pairs of floats."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...arguments import Tridiagonal
from ...refusals import refuse_triton
from ...request import KernelRequest
from ..memory import floats
from .tiles import Tile


class Rows(NamedTuple):
    """Operands of the tridiagonal kernels. Differentiable views of the checked arguments.

    diagonal (B, H, N), real or complex; lower and upper likewise, or both (R,) complex where neither varies along the
    row, with R = B H; energy and theta (before the first site) (R,) complex.
    """

    diagonal: Tensor
    lower: Tensor
    upper: Tensor
    energy: Tensor
    theta: Tensor


def check_served(problem: Tridiagonal) -> None:
    """ValueError with the reason that `muse_kernels.select_backend` would give."""
    dtype = "float64" if problem.dtype == torch.complex128 else "float32"
    reason = refuse_triton(KernelRequest(problem.operation, problem.energy.device.type, dtype))
    if reason is not None:
        raise ValueError(f"{problem.operation}: triton refuses: {reason}")


def rows_of(problem: Tridiagonal) -> Rows:
    """The operands of checked arguments; copies only what no strides over (B, H, N) can express."""
    lead = problem.lead
    constant = problem.lower.shape[-1] == 1 and problem.upper.shape[-1] == 1
    lower, upper = (
        one_a_row(x, lead) if constant else as_rows(x.expand(problem.shape), lead)
        for x in (problem.lower, problem.upper)
    )
    energy = one_a_row(problem.energy, lead)
    theta = complex_zeros(len(energy), like=energy) if problem.theta is None else problem.theta.reshape(-1)
    return Rows(as_rows(problem.diagonal.expand(problem.shape), lead), lower, upper, energy, theta)


def values_of(problem: Tridiagonal) -> tuple[Tensor, Tensor]:
    """The values (B, H, N, M) that checked arguments are applied to, and y before the first site, (R, M) complex."""
    width = problem.values.shape[-1]
    x = as_rows(problem.values.expand(*problem.shape, width), problem.lead)
    edge = (math.prod(problem.lead), width)
    if problem.applied is None:
        return x, complex_zeros(*edge, like=problem.energy)
    return x, problem.applied.reshape(edge)


def one_a_row(x: Tensor, lead: tuple[int, ...]) -> Tensor:
    """What broadcasts to (*lead, 1) as one complex number a row, (R,). By operations on real numbers, which a compiler
    fuses: it leaves those on complex ones alone."""
    if x.is_complex():
        pairs = torch.view_as_real(x).expand(*lead, 1, 2)
    else:
        pairs = F.pad(x.expand(*lead, 1)[..., None], (0, 1))
    return torch.view_as_complex(pairs.reshape(-1, 2))


def complex_zeros(*shape: int, like: Tensor) -> Tensor:
    """Zeros on the device of `like`, the same for every layer to a compiler, which then makes them once."""
    return torch.view_as_complex(torch.zeros((*shape, 2), dtype=torch.float32, device=like.device))


def as_rows(x: Tensor, lead: tuple[int, ...]) -> Tensor:
    """(*lead, ...) -> (B, H, ...): the last leading dimension stays, those before it become one."""
    if not lead:
        return x[None, None]
    outer = 1
    for size in lead[:-1]:
        outer *= size
    return x.reshape(outer, lead[-1], *x.shape[len(lead) :])


def inside_tokens(x: Tensor) -> bool:
    """Whether (B, H, N, M) has the heads of a token side by side, as layers have them, and not rows one by one."""
    return x.shape[1] > 1 and x.stride(1) < x.stride(2)


def laid_out_as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for a tensor of the shape (B, H, N, M) of x, dense, in the order of x: heads inside tokens or around them.

    Who keeps what a token has of all heads together reads the result so too, and neither is copied into rows.
    """
    outer, heads, sites, width = x.shape
    if inside_tokens(x):
        return x.new_empty((outer, sites, heads, width), dtype=dtype).transpose(1, 2)
    return x.new_empty(x.shape, dtype=dtype)


def gradient_like(y: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of y as floats, in y's order of memory."""
    gradient = floats(gradient.expand(y.shape))
    return gradient if gradient.stride() == floats(y).stride() else torch.empty_like(floats(y)).copy_(gradient)


def strides(x: Tensor) -> tuple[int, int, int]:
    """Of a (B, H, N) operand, in elements; zeros where it is one number a row."""
    return x.stride()[:3] if x.ndim >= 3 else (0, 0, 0)


class Operands(NamedTuple):
    """Rows as the kernels' leading arguments and compile-time flags."""

    diagonal: tuple
    hopping: tuple
    flags: dict
    hopping_flags: dict
    rows: int
    heads: int
    sites: int

    def masked(self, tile: Tile) -> bool:
        return self.sites % tile.sites != 0

    def chunks(self, tile: Tile) -> int:
        return -(-self.sites // tile.sites)


def operands(diagonal: Tensor, lower: Tensor, upper: Tensor) -> Operands:
    """Pointers, strides and flags of a, l and u."""
    outer, heads, sites = diagonal.shape
    constant = lower.ndim == 1
    if constant:
        lower, upper = lower.contiguous(), upper.contiguous()
    varying = (diagonal,) if constant else (diagonal, lower, upper)
    unit = all(x.stride(-1) == 1 for x in varying)
    hopping_flags = {
        "L_COMPLEX": lower.is_complex(),
        "U_COMPLEX": upper.is_complex(),
        "CONSTANT": constant,
        "UNIT": constant or all(x.stride(-1) == 1 for x in (lower, upper)),
    }
    return Operands(
        (floats(diagonal), *strides(diagonal)),
        (floats(lower), *strides(lower), floats(upper), *strides(upper)),
        {**hopping_flags, "A_COMPLEX": diagonal.is_complex(), "UNIT": unit},
        hopping_flags,
        outer * heads,
        heads,
        sites,
    )
