"""The gated normalisation row by row: inputs are read once forward and once backward, nothing else is kept."""

import torch
from torch import Tensor

from ..arguments import check_gated_norm, in_double
from ..double_backward import differentiated_again, gradients_by_torch
from ..torch.gated_norm import gated_norm as by_torch
from .calls import call

KINDS = "nnniiid" + "p" * 7
BLOCK = 64
"""Rows that share one sum of the weight's gradient, and that one thread works on."""


def gated_norm(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, *, epsilon: float = 1e-6, behind: Tensor | None = None
) -> Tensor:
    """As `muse_kernels.gated_norm` on a CPU; half precision is computed in float32. Second derivatives recompute by
    torch operations."""
    dtype = check_gated_norm(x, weight, gate, behind)
    computed = torch.float64 if in_double(x, weight, gate) else torch.float32
    if x.is_complex():
        x = x.to(torch.complex128 if computed == torch.float64 else torch.complex64)
    elif not _half(x, computed):
        x = x.to(computed)
    gate = gate if gate is None or _half(gate, computed) else gate.to(computed)
    weight = None if weight is None else weight.to(computed)
    found = _forward(x, weight, gate, epsilon).to(dtype)
    return found if behind is None else torch.cat((found, behind.to(dtype)), dim=-1)


def _half(x: Tensor, computed: torch.dtype) -> bool:
    """Whether x is read in bfloat16."""
    return x.dtype == torch.bfloat16 and computed == torch.float32


def _made(x: Tensor, gate: Tensor | None) -> Tensor:
    """Of the gate's dtype, and without one of the dtype of x."""
    features = x.shape[-1] * (2 if x.is_complex() else 1)
    like = gate if gate is not None else x.real
    return like.new_empty((*x.shape[:-1], features))


@torch.library.custom_op("muse_kernels::native_gated_norm", mutates_args=(), device_types="cpu")
def _forward(x: Tensor, weight: Tensor | None, gate: Tensor | None, epsilon: float) -> Tensor:
    found = _made(x, gate)
    _call("gated_norm_forward", x, weight, gate, epsilon, (found, None, None, None))
    return found


@_forward.register_fake
def _(x, weight, gate, epsilon):
    return _made(x, gate)


@torch.library.custom_op("muse_kernels::native_gated_norm_backward", mutates_args=(), device_types="cpu")
def _backward(
    to_output: Tensor, x: Tensor, weight: Tensor | None, gate: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    to_x = x.new_empty(x.shape)
    rows = x.numel() // max(x.shape[-1], 1)
    real = x.real if x.is_complex() else x
    shares = weight.new_empty(-(-rows // BLOCK), len(weight)) if weight is not None else None
    to_gate = None if gate is None else gate.new_empty(gate.shape)
    _call("gated_norm_backward", x, weight, gate, epsilon, (to_output.contiguous(), to_x, shares, to_gate))
    nothing = real.new_empty(0)
    return to_x, nothing if shares is None else shares.sum(0), nothing.clone() if to_gate is None else to_gate


@_backward.register_fake
def _(to_output, x, weight, gate, epsilon):
    nothing = (x.real if x.is_complex() else x).new_empty(0)
    return (
        x.new_empty(x.shape),
        nothing if weight is None else weight.new_empty(weight.shape),
        nothing.clone() if gate is None else gate.new_empty(gate.shape),
    )


def _call(function, x, weight, gate, epsilon, pointers) -> None:
    computed = weight.dtype if weight is not None else _precision(x, gate)
    rows = x.numel() // max(x.shape[-1], 1)
    half_x = x.dtype == torch.bfloat16
    arguments = {
        "rows": rows, "block": BLOCK, "F": x.shape[-1], "both": x.is_complex(), "half_x": half_x,
        "half_gate": half_x if gate is None else gate.dtype == torch.bfloat16, "epsilon": epsilon,
        "x": x.resolve_conj().resolve_neg().contiguous(),
        "weight": None if weight is None else weight.contiguous(),
        "gate": None if gate is None else gate.contiguous(),
    } | {f"p{number}": one for number, one in enumerate(pointers)}  # fmt: skip
    call(function, KINDS, arguments, -(-rows // BLOCK), computed)


def _precision(x: Tensor, gate: Tensor | None) -> torch.dtype:
    return torch.float64 if in_double(x, gate) else torch.float32


def _save(ctx, inputs, output):
    *tensors, ctx.epsilon = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, to_output):
    x, weight, gate = ctx.saved_tensors
    if differentiated_again(x, weight, gate, to_output):

        def function(x, weight, gate):
            return by_torch(x, weight, gate, epsilon=ctx.epsilon)

        return *gradients_by_torch(function, (x, weight, gate), (to_output,)), None
    to_x, to_weight, to_gate = _backward(to_output, x, weight, gate, ctx.epsilon)
    return to_x, None if weight is None else to_weight, None if gate is None else to_gate, None


_forward.register_autograd(_gradients, setup_context=_save)
