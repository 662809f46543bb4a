"""The causal resolvent applied to values by Triton kernels: theta, then the values' recurrence."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...arguments import check_resolvent
from ...double_backward import differentiate_gradients
from ...torch import resolvent as by_torch
from ...torch.resolvent import linear_scan
from .apply_launches import apply_backward, apply_forward
from .causal_resolvent_diagonal import fake_gradients, shifted_and_coupled
from .green_launches import left_green_backward
from .rows import Rows, check_served, laid_out_as, rows_of, values_of
from .tiles import ColumnTile, LaneTile, Tile


def causal_resolvent_apply(
    diagonal, lower, upper, energy, values, *, initial=None, group=None, tile: Tile | None = None,
    columns: ColumnTile | None = None, lanes: LaneTile | None = None,
):  # fmt: skip
    """y and theta; as `muse_kernels.causal_resolvent_apply`, in float32.

    `tile`, `columns` and `lanes` override the choices, for tests and benchmarks: `lanes` those of the kernels that run
    over the values once, the other two those of the kernels for few rows. Source: mathematics §1.
    """
    problem = check_resolvent(
        "causal_resolvent_apply", diagonal, lower, upper, energy, values=values, initial=initial, group=group,
        keeps_half=True,
    )  # fmt: skip
    check_served(problem)
    rows, (x, carried) = rows_of(problem), values_of(problem)
    y, theta = _forward(*rows, x, carried, list(tile or ()), list(columns or ()), list(lanes or ()))
    y, theta = y.reshape(*problem.shape, y.shape[-1]), theta.reshape(problem.shape)
    return (y, theta), (theta[..., -1].clone(), y[..., -1, :].clone())


def apply_in_torch(diagonal, lower, upper, energy, theta, values, carried) -> tuple[Tensor, Tensor]:
    """The same function of the same operands through the torch backend: y (B, H, N, M) and theta (R, N)."""
    d, p = shifted_and_coupled(diagonal, lower, upper, energy)
    result = by_torch.left_green(d, p, theta)
    lower = lower[:, None] if lower.ndim == 1 else lower.flatten(0, 1)
    y = linear_scan(result[..., None] * values.flatten(0, 1), -result * lower, carried)
    return y.view(values.shape), result


@torch.library.custom_op("muse_kernels::triton_causal_resolvent_apply", mutates_args=())
def _forward(
    diagonal: Tensor, lower: Tensor, upper: Tensor, energy: Tensor, theta: Tensor, values: Tensor, carried: Tensor,
    tile: list[int], columns: list[int], lanes: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows = Rows(diagonal, lower, upper, energy, theta)
    return apply_forward(rows, values, carried, *_tiles(tile, columns, lanes))


@_forward.register_fake
def _(diagonal, lower, upper, energy, theta, values, carried, tile, columns, lanes):
    return laid_out_as(values, energy.dtype), energy.new_empty((energy.shape[0], diagonal.shape[-1]))


@torch.library.custom_op("muse_kernels::triton_causal_resolvent_apply_backward", mutates_args=())
def _backward(
    gradient_y: Tensor, gradient_theta: Tensor, y: Tensor, result: Tensor, diagonal: Tensor, lower: Tensor,
    upper: Tensor, energy: Tensor, theta: Tensor, values: Tensor, carried: Tensor, hopping: bool, tile: list[int],
    columns: list[int], lanes: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tile, columns, lanes = _tiles(tile, columns, lanes)
    dx, applied, before, carry = apply_backward(
        gradient_y, y, lower, result, carried, values.dtype, hopping, columns, lanes
    )
    rows = Rows(diagonal, lower, upper, energy, theta)
    da, dl, du, dz, dtheta = left_green_backward(
        rows, result, gradient_theta, applied, before if hopping else None, hopping, tile
    )
    return da, dl, du, dz, dtheta, dx, carry


@_backward.register_fake
def _(gradient_y, gradient_theta, y, result, diagonal, lower, upper, energy, theta, values, carried, hopping, *tiles):
    return (
        *fake_gradients(diagonal, lower, upper, energy, hopping),
        theta.new_empty(theta.shape),
        laid_out_as(y, values.dtype),
        carried.new_empty(carried.shape),
    )


def _tiles(tile: list[int], columns: list[int], lanes: list[int]):
    """Overrides as an operator takes them, or None."""
    given = ((Tile, tile), (ColumnTile, columns), (LaneTile, lanes))
    return tuple(kind(*sizes) if sizes else None for kind, sizes in given)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*output, *inputs[:7])
    ctx.tiles = inputs[7:]


def _differentiate(ctx, gradient_y, gradient_theta):
    hopping = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    da, dl, du, *rest = _backward(gradient_y, gradient_theta, *ctx.saved_tensors, hopping, *ctx.tiles)
    return da, dl if hopping else None, du if hopping else None, *rest, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _save_backward(ctx, inputs, output):
    gradient_y, gradient_theta, _, _, *operands = inputs[:11]
    ctx.save_for_backward(gradient_y, gradient_theta, *operands)


@once_differentiable
def _differentiate_backward(ctx, *cotangents):
    gradient_y, gradient_theta, *operands = ctx.saved_tensors
    dy, dtheta, *rest = differentiate_gradients(apply_in_torch, operands, [gradient_y, gradient_theta], cotangents)
    return dy, dtheta, None, None, *rest, None, None, None, None


_backward.register_autograd(_differentiate_backward, setup_context=_save_backward)
