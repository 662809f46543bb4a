"""The gated normalisation by Triton kernels: x and the gate are read once forward and once backward."""

from functools import partial

import torch
from torch import Tensor

from ...arguments import check_gated_norm, in_double
from ...double_backward import differentiated_again, gradients_by_torch
from ...torch.gated_norm import gated_norm as by_torch
from ..memory import floats, unit_last_stride
from .kernels import gated_norm_backward_kernel, gated_norm_kernel

WIDEST = 8192
"""Features of a row that one program holds; a complex number is two."""
PROGRAMS, SHARES = 4096, {False: 512, True: 1024}
"""Programs forward, and backward of real and of complex rows, at most; each of the latter has a share of the gain's
gradient."""
AT_ONCE = 2048
"""Numbers that a program holds at once, where a row is not longer; backward of complex rows half as many."""


def gated_norm(x: Tensor, weight: Tensor | None, gate: Tensor | None, *, epsilon: float = 1e-6) -> Tensor:
    """As `muse_kernels.gated_norm`, in float32. A second derivative recomputes by torch operations."""
    check_gated_norm(x, weight, gate)
    if in_double(x, weight, gate):
        raise ValueError("gated_norm: the triton kernels compute in float32; use backend torch for float64")
    features = x.shape[-1] * (2 if x.is_complex() else 1)
    if features > WIDEST:
        raise ValueError(f"gated_norm: the triton kernels hold {WIDEST} features, got {features}; use backend torch")
    return _forward(x, weight, gate, epsilon)


def _result(x: Tensor, gate: Tensor | None) -> Tensor:
    shape = (*x.shape[:-1], x.shape[-1] * 2) if x.is_complex() else x.shape
    dtype = torch.float32 if x.is_complex() else x.dtype
    return x.new_empty(shape, dtype=dtype if gate is None else gate.dtype)


def _rows(x: Tensor) -> tuple[Tensor, int, int]:
    """x as rows (outer, inner, F) with strides: the tensor, and its strides over outer and inner rows."""
    x = unit_last_stride(x)
    if x.ndim == 1:
        return x, 0, 0
    if x.ndim == 2:
        return x, x.stride(0), 0
    outer = x.flatten(0, -3)  # copies only what no stride can say
    return outer, outer.stride(0), outer.stride(1)


def _shape(x: Tensor) -> tuple[int, int, int]:
    """Rows, inner rows of an outer one, and the width."""
    width = x.shape[-1]
    inner = x.shape[-2] if x.ndim > 2 else 1
    return x.numel() // max(width, 1), inner, width


def _launch(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, most: int, at_once: int = AT_ONCE
) -> tuple[int, dict]:
    """Programs, at most so many, and compile-time choices."""
    rows, _, width = _shape(x)
    columns = 16
    while columns < width:
        columns *= 2
    numbers = columns * (2 if x.is_complex() else 1)
    together = max(1, at_once // numbers)
    flags = {"COMPLEX": x.is_complex(), "NORM": weight is not None, "GATE": gate is not None}
    flags |= {"R": together, "F": columns, "num_warps": 4 if numbers <= 2 * AT_ONCE else 8}
    return min(most, -(-rows // together)), flags


@torch.library.custom_op("muse_kernels::gated_norm", mutates_args=())
def _forward(x: Tensor, weight: Tensor | None, gate: Tensor | None, epsilon: float) -> Tensor:
    output = _result(x, gate)
    programs, flags = _launch(x, weight, gate, PROGRAMS)
    if output.numel():
        given, *steps = _rows(x)
        weight = None if weight is None else weight.contiguous()
        opening, *gate_steps = (None, 0, 0) if gate is None else _rows(gate)
        with torch.cuda.device_of(x):
            gated_norm_kernel[(programs,)](
                floats(given), weight, opening, output, *_shape(x), *steps, *gate_steps, epsilon, **flags
            )
    return output


@_forward.register_fake
def _(x, weight, gate, epsilon):
    return _result(x, gate)


@torch.library.custom_op("muse_kernels::gated_norm_backward", mutates_args=())
def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor | None, gate: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape)
    dgate = x.new_empty(0, dtype=torch.float32) if gate is None else gate.new_empty(gate.shape)
    both = x.is_complex()
    programs, flags = _launch(x, weight, gate, SHARES[both], AT_ONCE // 2 if both else AT_ONCE)
    features = x.shape[-1] * (2 if x.is_complex() else 1)
    shares = x.new_empty((programs, features), dtype=torch.float32)
    if x.numel():
        given, *steps = _rows(x)
        weight = None if weight is None else weight.contiguous()
        opening, *gate_steps = (None, 0, 0) if gate is None else _rows(gate)
        incoming, *gradient_steps = _rows(gradient)
        with torch.cuda.device_of(x):
            gated_norm_backward_kernel[(programs,)](
                floats(given), weight, opening, incoming, floats(dx), shares, dgate, *_shape(x), *steps, *gate_steps,
                *gradient_steps, epsilon, **flags,
            )  # fmt: skip
    dweight = shares.sum(0) if weight is None else shares.sum(0).to(weight.dtype)
    return dx, dweight, dgate


@_backward.register_fake
def _(gradient, x, weight, gate, epsilon):
    features = x.shape[-1] * (2 if x.is_complex() else 1)
    dweight = x.new_empty(features, dtype=torch.float32 if weight is None else weight.dtype)
    dgate = x.new_empty(0, dtype=torch.float32) if gate is None else gate.new_empty(gate.shape)
    return x.new_empty(x.shape), dweight, dgate


def _save(ctx, inputs, output):
    *tensors, ctx.epsilon = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, gradient):
    x, weight, gate = ctx.saved_tensors
    if differentiated_again(x, weight, gate, gradient):
        found = gradients_by_torch(partial(by_torch, epsilon=ctx.epsilon), (x, weight, gate), [gradient])
        return *found, None
    dx, dweight, dgate = _backward(gradient, x, weight, gate, ctx.epsilon)
    return dx, None if weight is None else dweight, None if gate is None else dgate, None


_forward.register_autograd(_gradients, setup_context=_save)
