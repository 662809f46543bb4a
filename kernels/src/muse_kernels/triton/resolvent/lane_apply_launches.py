"""Launches of the values' kernels over lanes of sites, which pass over memory once. No autograd."""

import math

import torch
from torch import Tensor

from ..memory import floats
from .lane_apply_kernels import lane_apply_backward_kernel, lane_apply_kernel
from .rows import Rows, gradient_like, laid_out_as, operands, strides
from .tiles import LaneTile

PIECE = 8
"""Numbers of a lane that are stored at once: 64 bytes. Half sectors take the whole kernel 1.6 times as long."""


def run_lanes(rows: Rows, values: Tensor, initial: Tensor, tile: LaneTile) -> tuple[Tensor, Tensor]:
    """y (B, H, N, M) and theta (R, N) of values (B, H, N, M) and y before the row (R, M)."""
    given = operands(*rows[:3])
    width = values.shape[-1]
    theta = rows.energy.new_empty((given.rows, given.sites))
    y = laid_out_as(values, theta.dtype)
    if theta.numel() == 0:
        return y, theta
    if values.stride(-1) != 1:
        values = values.contiguous()
    with torch.cuda.device_of(theta):
        lane_apply_kernel[(given.rows * tile.groups(width),)](
            *given.diagonal, *given.hopping, floats(rows.energy.contiguous()), floats(rows.theta.contiguous()),
            floats(values), *values.stride()[:3], floats(initial.contiguous()), floats(theta), floats(y),
            *y.stride()[:2], given.heads, given.sites, given.chunks(tile), **given.flags,
            X_COMPLEX=values.is_complex(), X_UNIT=values.stride(2) == width, X_ALIGNED=_aligned(values), WIDTH=width,
            Y_STEP=y.stride(2), ALIGNED=_aligned(y), MASKED=given.masked(tile), PIECE=_piece(y, tile), **tile.options,
        )  # fmt: skip
    return y, theta


def run_lanes_back(
    gradient: Tensor, y: Tensor, lower: Tensor, theta: Tensor, initial: Tensor, dtype: torch.dtype, hopping: bool,
    tile: LaneTile,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx (B, H, N, M) in `dtype`, sum_M Y y (R, N), what l gets, and the gradient of y before the row (R, M).

    What l gets is sum_M Y y_{i-1} (R, N), its sum with theta over the row (R,) where l is one number a row, and empty
    without `hopping`.
    """
    (rows, sites), heads, width = theta.shape, y.shape[1], y.shape[-1]
    groups, constant = tile.groups(width), lower.ndim == 1
    dx = laid_out_as(y, dtype)
    dinitial = torch.empty_like(initial, memory_format=torch.contiguous_format)
    applied = theta.new_empty((groups, rows, sites))
    before = theta.new_empty((groups, rows, *(() if constant else (sites,))) if hopping else (1, 0))
    if y.numel() == 0:
        return dx, torch.zeros_like(theta), before.new_zeros(before.shape[1:]), dinitial
    lower = lower.contiguous() if constant else lower
    with torch.cuda.device_of(theta):
        lane_apply_backward_kernel[(rows * groups,)](
            gradient_like(y, gradient), floats(y), *y.stride()[:2], floats(lower), *strides(lower), floats(theta),
            floats(initial.contiguous()), floats(dx), floats(applied), floats(before), floats(dinitial),
            rows, heads, sites, -(-sites // tile.sites), X_COMPLEX=dx.is_complex(), L_COMPLEX=lower.is_complex(),
            CONSTANT=constant, HOPPING=hopping, UNIT=constant or lower.stride(-1) == 1, WIDTH=width,
            Y_STEP=y.stride(2), ALIGNED=_aligned(y), MASKED=sites % tile.sites != 0, PIECE=_piece(y, tile),
            **tile.options,
        )  # fmt: skip
    applied, before = (x[0] if len(x) == 1 else x.sum(0) for x in (applied, before))
    return dx, applied, before, dinitial


def _aligned(x: Tensor) -> int:
    """The largest power of two, at most 16, that divides the strides of (B, H, N, M) over rows and sites."""
    common = math.gcd(16, *x.stride()[:3])
    return common & -common


def _piece(y: Tensor, tile: LaneTile) -> int:
    """Neighbours that are stored at once, a power of two: some of a lane's, or one site's where there is room between.

    Between the sites of one lane lies what other programs write, or nothing.
    """
    if y.stride(2) == tile.columns:
        together = tile.columns * tile.per_lane
        return min(PIECE, together & -together)
    return 1 << (tile.columns - 1).bit_length()
