"""The causal resolvent site by site, the heads of a sequence side by side in the processor's vectors.

Shapes: R rows, N sites, H heads (the last leading dimension), M values of a head.
"""

import math

import torch
from torch import Tensor

from ..arguments import Tridiagonal
from ..double_backward import differentiated_again, gradients_by_torch
from ..signatures import apply_of, diagonal_of
from ..torch.resolvent import left_green, linear_scan
from .calls import call

KINDS = "nnnii" + "p" * 18


@diagonal_of
def causal_resolvent_diagonal(problem: Tridiagonal) -> Tensor:
    """theta on a CPU; arguments, results and errors as `muse_kernels.causal_resolvent_diagonal`.

    Cost and memory O(N); second derivatives by torch operations. Source: mathematics §1.
    """
    return _solved(problem)[1]


@apply_of
def causal_resolvent_apply(problem: Tridiagonal) -> tuple[Tensor, Tensor]:
    """y and theta on a CPU; arguments, results and errors as `muse_kernels.causal_resolvent_apply`.

    Cost and memory O(N M); second derivatives by torch operations. Source: mathematics §1.
    """
    return _solved(problem)


def _solved(problem: Tridiagonal) -> tuple[Tensor, Tensor]:
    """y (*lead, N, M), M = 0 without values, and theta (*lead, N)."""
    lead, sites = problem.lead, problem.sites
    heads = lead[-1] if lead else 1
    rows = math.prod(lead[:-1])
    fixed = problem.lower.shape[-1] == 1 == problem.upper.shape[-1]

    def by_site(x: Tensor, count: int) -> Tensor:
        """(..., count) -> (R, count, H) complex: a view for a layer's (B, H, N), which lie as (B, N, H)."""
        wide = x.to(problem.dtype).expand(*lead, count)
        return wide.reshape(rows, heads, count).transpose(1, 2)

    values = problem.values
    if values is None:
        values = problem.diagonal.real.new_zeros(*(1,) * len(lead), sites, 0)
    width = values.shape[-1]
    x = values.expand(*lead, sites, width).reshape(rows, heads, sites, width).transpose(1, 2)
    count = 1 if fixed else sites
    before = problem.energy.new_zeros(rows, heads) if problem.theta is None else problem.theta.reshape(rows, heads)
    applied = problem.applied
    y_before = problem.energy.new_zeros(rows, heads, width) if applied is None else applied.reshape(rows, heads, width)
    theta, y = _forward(
        by_site(problem.diagonal, sites), by_site(problem.energy, 1)[:, 0],
        by_site(problem.lower * problem.upper, count), by_site(problem.lower, count), x, before, y_before,
    )  # fmt: skip
    return y.transpose(1, 2).reshape(*problem.shape, width), theta.transpose(1, 2).reshape(problem.shape)


def _in_torch(a, z, p, lower, x, before, y_before) -> tuple[Tensor, Tensor]:
    """The same function of the same operands through the torch backend."""
    shape = a.transpose(1, 2).shape
    p, lower = (one.transpose(1, 2).expand(shape) for one in (p, lower))
    theta = left_green((a - z[:, None]).transpose(1, 2), p, before)
    y = linear_scan(theta[..., None] * x.transpose(1, 2), -theta * lower, y_before)
    return theta.transpose(1, 2), y.transpose(1, 2)


@torch.library.custom_op("muse_kernels::native_resolvent", mutates_args=(), device_types="cpu")
def _forward(
    a: Tensor, z: Tensor, p: Tensor, lower: Tensor, x: Tensor, before: Tensor, y_before: Tensor
) -> tuple[Tensor, Tensor]:
    theta, y = a.new_empty(a.shape), a.new_empty(x.shape)
    _call("resolvent_forward", (a, z, p, lower, x, before, y_before), (theta, y), (None,) * 9)
    return theta, y


@_forward.register_fake
def _(a, z, p, lower, x, before, y_before):
    return a.new_empty(a.shape), a.new_empty(x.shape)


@torch.library.custom_op("muse_kernels::native_resolvent_backward", mutates_args=(), device_types="cpu")
def _backward(
    a: Tensor, z: Tensor, p: Tensor, lower: Tensor, x: Tensor, before: Tensor, y_before: Tensor, theta: Tensor,
    y: Tensor, to_theta: Tensor, to_y: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = (a, z, p, lower, x, before, y_before)
    found = tuple(torch.zeros(one.shape, dtype=one.dtype) if one is lower and not x.shape[-1]
                  else one.new_empty(one.shape) for one in inputs)  # fmt: skip
    incoming = (to_theta.resolve_conj().contiguous(), to_y.resolve_conj().contiguous())
    _call("resolvent_backward", inputs, (theta.contiguous(), y.contiguous()), (*incoming, *found))
    return found


@_backward.register_fake
def _(a, z, p, lower, x, before, y_before, theta, y, to_theta, to_y):
    return tuple(one.new_empty(one.shape) for one in (a, z, p, lower, x, before, y_before))


def _call(function, inputs, outputs, gradients) -> None:
    a, x = inputs[0], inputs[4]
    rows, sites, heads = a.shape
    whole = [one.resolve_conj().resolve_neg().contiguous() for one in inputs]
    sizes = {"N": sites, "H": heads, "M": x.shape[-1], "fixed": inputs[2].shape[1] == 1, "complex": x.is_complex()}
    pointers = {f"p{number}": one for number, one in enumerate((*whole, *outputs, *gradients))}
    call(function, KINDS, sizes | pointers, rows, a.dtype)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx, to_theta, to_y):
    *inputs, theta, y = ctx.saved_tensors
    if differentiated_again(*inputs, to_theta, to_y):
        return tuple(gradients_by_torch(_in_torch, inputs, (to_theta, to_y)))
    return _backward(*inputs, theta, y, to_theta, to_y)


_forward.register_autograd(_gradients, setup_context=_save)
