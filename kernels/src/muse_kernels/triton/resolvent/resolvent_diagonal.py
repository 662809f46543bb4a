"""The two-sided diagonal by Triton kernels, as a registered operator."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...arguments import check_resolvent
from ...double_backward import differentiate_gradients
from ...torch import resolvent as by_torch
from ...torch.resolvent import linear_scan
from .causal_resolvent_diagonal import fake_gradients, shifted_and_coupled
from .green_launches import green_backward, left_green_forward
from .rows import Rows, check_served, rows_of
from .tiles import Tile, green_tile


def resolvent_diagonal(diagonal, lower, upper, energy, *, tile: Tile | None = None) -> Tensor:
    """G in one pass over memory, more for long rows; as `muse_kernels.resolvent_diagonal`, in float32.

    `tile` overrides the choice of lanes and warps, for tests and benchmarks. Source: mathematics §1.
    """
    problem = check_resolvent("resolvent_diagonal", diagonal, lower, upper, energy)
    check_served(problem)
    tile = tile or green_tile(problem.sites)
    return _forward(*rows_of(problem), list(tile))[0].reshape(problem.shape)


def green_in_torch(diagonal: Tensor, lower: Tensor, upper: Tensor, energy: Tensor) -> Tensor:
    """The same function of the same operands through the torch backend."""
    d, p = shifted_and_coupled(diagonal, lower, upper, energy)
    theta = by_torch.left_green(d, p, torch.zeros_like(energy))
    factors = torch.cat((p[:, 1:] * theta[:, :-1].square(), torch.zeros_like(p[:, :1])), dim=1)
    return linear_scan(theta[..., None], factors, reverse=True)[..., 0]


@torch.library.custom_op("muse_kernels::triton_resolvent_diagonal", mutates_args=())
def _forward(
    diagonal: Tensor, lower: Tensor, upper: Tensor, energy: Tensor, theta: Tensor, tile: list[int]
) -> tuple[Tensor, Tensor]:
    result, green = left_green_forward(Rows(diagonal, lower, upper, energy, theta), Tile(*tile), full=True)
    return green, result


@_forward.register_fake
def _(diagonal, lower, upper, energy, theta, tile):
    shape = (energy.shape[0], diagonal.shape[-1])
    return energy.new_empty(shape), energy.new_empty(shape)


@torch.library.custom_op("muse_kernels::triton_resolvent_diagonal_backward", mutates_args=())
def _backward(
    gradient: Tensor, green: Tensor, result: Tensor, diagonal: Tensor, lower: Tensor, upper: Tensor, energy: Tensor,
    hopping: bool, tile: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows = Rows(diagonal, lower, upper, energy, energy)
    return green_backward(rows, result, green, gradient, hopping, Tile(*tile))


@_backward.register_fake
def _(gradient, green, result, diagonal, lower, upper, energy, hopping, tile):
    return fake_gradients(diagonal, lower, upper, energy, hopping)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*output, *inputs[:4])
    ctx.tile = inputs[5]


def _differentiate(ctx, gradient, _):
    # theta is an output only so that it can be saved: no gradient arrives there.
    green, result, *operands = ctx.saved_tensors
    hopping = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    da, dl, du, dz = _backward(gradient, green, result, *operands, hopping, ctx.tile)
    return da, dl if hopping else None, du if hopping else None, dz, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _save_backward(ctx, inputs, output):
    gradient, _, _, *operands = inputs[:7]
    ctx.save_for_backward(gradient, *operands)


@once_differentiable
def _differentiate_backward(ctx, *cotangents):
    gradient, *operands = ctx.saved_tensors
    dg, *rest = differentiate_gradients(green_in_torch, operands, [gradient], cotangents)
    return dg, None, None, *rest, None, None


_backward.register_autograd(_differentiate_backward, setup_context=_save_backward)
