"""Launches of the values' kernels over lanes of sites, which pass over memory once. No autograd."""

import torch
from torch import Tensor

from .lane_apply_backward_kernel import lane_apply_backward_kernel
from .lane_apply_kernel import lane_apply_kernel
from .rows import Rows, floats, operands, strides
from .tiles import LaneTile

PIECE = 8
"""Numbers of a lane that are stored at once: 64 bytes. Half sectors take the whole kernel 1.6 times as long."""


def run_lanes(rows: Rows, values: Tensor, initial: Tensor, tile: LaneTile) -> tuple[Tensor, Tensor]:
    """y (R, N, M) and theta (R, N) of values (B, H, N, M) and y before the row (R, M)."""
    given = operands(*rows[:3])
    width = values.shape[-1]
    theta = rows.energy.new_empty((given.rows, given.sites))
    y = theta.new_empty((given.rows, given.sites, width))
    if theta.numel() == 0:
        return y, theta
    if values.stride(-1) != 1:
        values = values.contiguous()
    with torch.cuda.device_of(theta):
        lane_apply_kernel[(given.rows * tile.groups(width),)](
            *given.diagonal, *given.hopping, floats(rows.energy.contiguous()), floats(rows.theta.contiguous()),
            floats(values), *values.stride()[:3], floats(initial.contiguous()), floats(theta), floats(y),
            given.heads, given.sites, given.chunks(tile), **given.flags, X_COMPLEX=values.is_complex(),
            X_UNIT=values.stride(2) == width, WIDTH=width, MASKED=given.masked(tile),
            PIECE=_piece(width, tile), **tile.options,
        )  # fmt: skip
    return y, theta


def run_lanes_back(
    gradient: Tensor, y: Tensor, lower: Tensor, theta: Tensor, initial: Tensor, heads: int, real: bool, hopping: bool,
    tile: LaneTile,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx (R, N, M), sum_M Y y (R, N), what l gets, and the gradient of y before the row (R, M).

    What l gets is sum_M Y y_{i-1} (R, N), its sum with theta over the row (R,) where l is one number a row, and empty
    without `hopping`.
    """
    rows, sites, width = y.shape
    groups, constant = tile.groups(width), lower.ndim == 1
    dx = torch.empty_like(y, dtype=torch.float32 if real else y.dtype)
    dinitial = torch.empty_like(initial, memory_format=torch.contiguous_format)
    applied = theta.new_empty((groups, rows, sites))
    before = theta.new_empty((groups, rows, *(() if constant else (sites,))) if hopping else (1, 0))
    if y.numel() == 0:
        return dx, torch.zeros_like(theta), before.new_zeros(before.shape[1:]), dinitial
    lower = lower.contiguous() if constant else lower
    with torch.cuda.device_of(theta):
        lane_apply_backward_kernel[(rows * groups,)](
            floats(gradient.contiguous()), floats(y), floats(lower), *strides(lower), floats(theta),
            floats(initial.contiguous()), floats(dx), floats(applied), floats(before), floats(dinitial),
            rows, heads, sites, -(-sites // tile.sites), X_COMPLEX=not real, L_COMPLEX=lower.is_complex(),
            CONSTANT=constant, HOPPING=hopping, UNIT=constant or lower.stride(-1) == 1, WIDTH=width,
            MASKED=sites % tile.sites != 0, PIECE=_piece(width, tile), **tile.options,
        )  # fmt: skip
    applied, before = (x[0] if len(x) == 1 else x.sum(0) for x in (applied, before))
    return dx, applied, before, dinitial


def _piece(width: int, tile: LaneTile) -> int:
    """Neighbours that are stored at once: a power of two."""
    together = tile.columns * (tile.per_lane if tile.columns == width else 1)
    return min(PIECE, together & -together)
