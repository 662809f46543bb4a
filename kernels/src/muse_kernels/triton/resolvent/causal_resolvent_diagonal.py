"""The left Green's function by Triton kernels: a registered operator, backward by a kernel, twice by torch."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...arguments import check_resolvent
from ...double_backward import differentiate_gradients
from ...torch import resolvent as by_torch
from .green_launches import left_green_backward
from .row_launches import left_green
from .rows import Rows, check_served, rows_of
from .tiles import Tile


def causal_resolvent_diagonal(
    diagonal, lower, upper, energy, *, initial=None, group=None, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """theta in one pass over memory, two for long rows; as `muse_kernels.causal_resolvent_diagonal`, in float32.

    `tile` overrides the choice of lanes and warps, for tests and benchmarks. Source: mathematics §1.
    """
    problem = check_resolvent("causal_resolvent_diagonal", diagonal, lower, upper, energy, initial=initial, group=group)
    check_served(problem)
    theta = _forward(*rows_of(problem), list(tile or ())).reshape(problem.shape)
    return theta, theta[..., -1].clone()


def left_green_in_torch(diagonal: Tensor, lower: Tensor, upper: Tensor, energy: Tensor, theta: Tensor) -> Tensor:
    """The same function of the same operands through the torch backend."""
    d, p = shifted_and_coupled(diagonal, lower, upper, energy)
    return by_torch.left_green(d, p, theta)


def shifted_and_coupled(diagonal: Tensor, lower: Tensor, upper: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """d and p (R, N) of operands."""
    d = diagonal.flatten(0, 1) - energy[:, None]
    p = (lower * upper).to(d.dtype)
    return d, (p[:, None] if p.ndim == 1 else p.flatten(0, 1)).expand_as(d)


@torch.library.custom_op("muse_kernels::triton_left_green", mutates_args=())
def _forward(
    diagonal: Tensor, lower: Tensor, upper: Tensor, energy: Tensor, theta: Tensor, tile: list[int]
) -> Tensor:
    return left_green(Rows(diagonal, lower, upper, energy, theta), Tile(*tile) if tile else None)


@_forward.register_fake
def _(diagonal, lower, upper, energy, theta, tile):
    return energy.new_empty((energy.shape[0], diagonal.shape[-1]))


@torch.library.custom_op("muse_kernels::triton_left_green_backward", mutates_args=())
def _backward(
    gradient: Tensor, result: Tensor, diagonal: Tensor, lower: Tensor, upper: Tensor, energy: Tensor, theta: Tensor,
    hopping: bool, tile: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows = Rows(diagonal, lower, upper, energy, theta)
    chosen = Tile(*tile) if tile else None
    return left_green_backward(rows, result, gradient, None, None, hopping, chosen)


@_backward.register_fake
def _(gradient, result, diagonal, lower, upper, energy, theta, hopping, tile):
    return (*fake_gradients(diagonal, lower, upper, energy, hopping), theta.new_empty(theta.shape))


def fake_gradients(diagonal, lower, upper, energy, hopping: bool):
    """Shapes of what the backward kernels return for a, l, u and z."""
    return (
        diagonal.new_empty(diagonal.shape),
        lower.new_empty(lower.shape if hopping else 0),
        upper.new_empty(upper.shape if hopping else 0),
        energy.new_empty(energy.shape),
    )


def _save(ctx, inputs, output):
    ctx.save_for_backward(output, *inputs[:5])
    ctx.tile = inputs[5]


def _differentiate(ctx, gradient):
    result, *operands = ctx.saved_tensors
    hopping = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    da, dl, du, dz, dtheta = _backward(gradient, result, *operands, hopping, ctx.tile)
    return da, dl if hopping else None, du if hopping else None, dz, dtheta, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _save_backward(ctx, inputs, output):
    gradient, _, *operands = inputs[:7]
    ctx.save_for_backward(gradient, *operands)


@once_differentiable
def _differentiate_backward(ctx, *cotangents):
    gradient, *operands = ctx.saved_tensors
    dg, *rest = differentiate_gradients(left_green_in_torch, operands, [gradient], cotangents)
    return dg, None, *rest, None, None


_backward.register_autograd(_differentiate_backward, setup_context=_save_backward)
