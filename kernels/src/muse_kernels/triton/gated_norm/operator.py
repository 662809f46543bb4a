"""The gated normalisation by Triton kernels: x and the gate are read once forward and once backward."""

from functools import partial
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ...arguments import check_gated_norm, in_double
from ...double_backward import differentiated_again, gradients_by_torch
from ...torch.gated_norm import gated_norm as by_torch
from ..memory import floats, unit_last_stride
from .kernels import gated_norm_backward_kernel, gated_norm_kernel

WIDEST = 8192
"""Features of a row that one program holds; a complex number is two."""
HIGHEST = 2**31 - 2**17
"""Rows, so that their numbers and those of the blocks behind them fit 32 bits."""


class Tile(NamedTuple):
    """So many numbers at once in a program, where a row is not longer; so many a warp; so many programs at most, each
    of which has a share of the gain's gradient. ``ahead``: a block is loaded before the last one is computed."""

    numbers: int
    a_warp: int
    programs: int
    ahead: bool = False

    def launch(self, rows: int, width: int, both: bool) -> tuple[int, dict]:
        """Programs, and the compile-time sizes."""
        columns = max(16, triton.next_power_of_2(width))
        numbers = columns * (2 if both else 1)
        together = max(1, self.numbers // numbers)
        warps = min(MOST_WARPS, max(1, together * numbers // self.a_warp))
        ahead = self.ahead and numbers <= MOST_AHEAD
        flags = {"COMPLEX": both, "AHEAD": ahead, "R": together, "F": columns, "num_warps": warps}
        return min(self.programs, -(-rows // together)), flags


MOST_WARPS, MOST_AHEAD = 16, 4096
"""Warps of a program, and numbers of a row of which two lie in the registers of so many without spilling."""
FORWARD = {False: Tile(1024, 256, 4096), True: Tile(2048, 1024, 4096)}
BACKWARD = {False: Tile(2048, 512, 396, ahead=True), True: Tile(1024, 128, 1056, ahead=True)}
"""Of real and of complex rows: the fastest of those measured on an H200 in bfloat16, with 16 heads of 64 a token and
with rows of 1,024 complex numbers."""


def gated_norm(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, *, epsilon: float = 1e-6, behind: Tensor | None = None
) -> Tensor:
    """As `muse_kernels.gated_norm`, in float32. A second derivative recomputes by torch operations."""
    dtype = check_gated_norm(x, weight, gate, behind)
    if in_double(x, weight, gate):
        raise ValueError("gated_norm: the triton kernels compute in float32; use backend torch for float64")
    features = x.shape[-1] * (2 if x.is_complex() else 1)
    if features > WIDEST:
        raise ValueError(f"gated_norm: the triton kernels hold {WIDEST} features, got {features}; use backend torch")
    if x.numel() > HIGHEST * x.shape[-1]:
        raise ValueError(f"gated_norm: the triton kernels number {HIGHEST} rows, got x {tuple(x.shape)}")
    return _forward(x, weight, gate, None if behind is None else behind.to(dtype), epsilon)


def _result(x: Tensor, gate: Tensor | None, behind: Tensor | None) -> Tensor:
    features = x.shape[-1] * (2 if x.is_complex() else 1) + (0 if behind is None else behind.shape[-1])
    dtype = torch.float32 if x.is_complex() else x.dtype
    return x.new_empty((*x.shape[:-1], features), dtype=dtype if gate is None else gate.dtype)


class Lying(NamedTuple):
    """A tensor whose rows lie at multiples of two strides."""

    tensor: Tensor
    outer: int
    inner: int


def _lying(x: Tensor) -> Lying:
    """Rows of x (outer, inner, F); copied only where no two strides can say where they lie."""
    x = unit_last_stride(x)
    if x.ndim == 1:
        return Lying(x, 0, 0)
    if x.ndim == 2:
        return Lying(x, x.stride(0), 0)
    outer = x.flatten(0, -3)
    return Lying(outer, outer.stride(0), outer.stride(1))


def _rows(x: Tensor, *others: Tensor | None) -> tuple[tuple[int, int, int], list[Tensor | None], list[int]]:
    """(Rows, inner rows of an outer one, width) of x; the tensors, and all their strides. Where one stride is enough
    for each, rows are outer ones alone, and no number of a row is divided."""
    width = x.shape[-1]
    rows, inner = x.numel() // max(width, 1), x.shape[-2] if x.ndim > 2 else 1
    lying = [None if one is None else _lying(one) for one in (x, *others)]
    if inner > 1 and all(one is None or one.outer == inner * one.inner or rows == inner for one in lying):
        lying = [None if one is None else Lying(one.tensor, one.inner, 0) for one in lying]
        inner = 1
    strides = [step for one in lying for step in ((0, 0) if one is None else one[1:])]
    return (rows, inner, width), [None if one is None else one.tensor for one in lying], strides


@torch.library.custom_op("muse_kernels::gated_norm", mutates_args=())
def _forward(x: Tensor, weight: Tensor | None, gate: Tensor | None, behind: Tensor | None, epsilon: float) -> Tensor:
    output = _result(x, gate, behind)
    if output.numel():
        run_forward(output, x, weight, gate, behind, epsilon, FORWARD[x.is_complex()])
    return output


def run_forward(output, x, weight, gate, behind, epsilon: float, tile: Tile) -> None:
    """One launch, into `output`; there are rows."""
    sizes, (given, opening, copied), steps = _rows(x, gate, behind)
    programs, flags = tile.launch(sizes[0], sizes[2], x.is_complex())
    more = 0 if behind is None else behind.shape[-1]
    flags |= {"NORM": weight is not None, "GATE": gate is not None, "BEHIND": triton.next_power_of_2(more)}
    weight = None if weight is None else weight.contiguous()
    with torch.cuda.device_of(x):
        gated_norm_kernel[(programs,)](
            floats(given), weight, opening, copied, output, *sizes, *steps, more, epsilon, **flags
        )


@_forward.register_fake
def _(x, weight, gate, behind, epsilon):
    return _result(x, gate, behind)


@torch.library.custom_op("muse_kernels::gated_norm_backward", mutates_args=())
def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor | None, gate: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    return run_backward(gradient, x, weight, gate, epsilon, BACKWARD[x.is_complex()])


def run_backward(gradient, x, weight, gate, epsilon: float, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, the gain (of float32 and of no value without one) and the gate (empty without one)."""
    dx = x.new_empty(x.shape)
    dgate = x.new_empty(0, dtype=torch.float32) if gate is None else gate.new_empty(gate.shape)
    features = x.shape[-1] * (2 if x.is_complex() else 1)
    if not x.numel():
        shares = x.new_zeros((1, features), dtype=torch.float32)
    else:
        sizes, (given, opening, incoming), steps = _rows(x, gate, gradient)
        programs, flags = tile.launch(sizes[0], sizes[2], x.is_complex())
        shares = x.new_empty((programs, features), dtype=torch.float32)
        flags |= {"NORM": weight is not None, "GATE": gate is not None}
        gain = None if weight is None else weight.contiguous()
        with torch.cuda.device_of(x):
            gated_norm_backward_kernel[(programs,)](
                floats(given), gain, opening, incoming, floats(dx), shares, dgate, *sizes, *steps, epsilon, **flags
            )
    dweight = shares.sum(0) if weight is None else shares.sum(0).to(weight.dtype)
    return dx, dweight, dgate


@_backward.register_fake
def _(gradient, x, weight, gate, epsilon):
    features = x.shape[-1] * (2 if x.is_complex() else 1)
    dweight = x.new_empty(features, dtype=torch.float32 if weight is None else weight.dtype)
    dgate = x.new_empty(0, dtype=torch.float32) if gate is None else gate.new_empty(gate.shape)
    return x.new_empty(x.shape), dweight, dgate


def _save(ctx, inputs, output):
    *tensors, behind, ctx.epsilon = inputs
    ctx.more = None if behind is None else behind.shape[-1]
    ctx.save_for_backward(*tensors)


def _gradients(ctx, gradient):
    x, weight, gate = ctx.saved_tensors
    behind = None
    if ctx.more is not None:
        gradient, behind = gradient.split([gradient.shape[-1] - ctx.more, ctx.more], dim=-1)
    if differentiated_again(x, weight, gate, gradient):
        found = gradients_by_torch(partial(by_torch, epsilon=ctx.epsilon), (x, weight, gate), [gradient])
        return *found, behind, None
    dx, dweight, dgate = _backward(gradient, x, weight, gate, ctx.epsilon)
    return dx, None if weight is None else dweight, None if gate is None else dgate, behind, None


_forward.register_autograd(_gradients, setup_context=_save)
