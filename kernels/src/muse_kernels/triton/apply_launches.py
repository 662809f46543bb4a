"""Launches of the values' kernels. No autograd."""

from typing import NamedTuple

import torch
from torch import Tensor

from .apply_kernels import apply_backward_kernel, apply_kernel
from .launches import linear_carries
from .rows import floats, strides


class ColumnTile(NamedTuple):
    """P lanes of E sites by W columns, on this many warps: what one program takes of a row's values."""

    lanes: int
    per_lane: int
    columns: int
    warps: int

    @property
    def sites(self) -> int:
        return self.lanes * self.per_lane


def column_tile_for(sites: int, width: int) -> ColumnTile:
    """Tiles of at most 1,024 sites and eight columns; two threads share four lanes' columns of one site."""
    columns = 1
    while columns < min(width, 8):
        columns *= 2
    lanes = 4
    while lanes * 16 < min(sites, 1024):
        lanes *= 2
    return ColumnTile(lanes, 16, columns, max(1, lanes * columns // 32))


def apply_forward(values: Tensor, lower: Tensor, theta: Tensor, initial: Tensor, tile: ColumnTile) -> Tensor:
    """y (R, N, M) of values (B, H, N, M), lower (B, H, N) or (R,), theta (R, N) and y before the row (R, M)."""
    outer, heads, sites, width = values.shape
    rows = outer * heads
    y = theta.new_empty((rows, sites, width))
    if y.numel() == 0:
        return y
    chunks, tiles = -(-sites // tile.sites), -(-width // tile.columns)
    lower, shared = _hopping(lower, tile)
    x = floats(values)
    start = floats(initial.contiguous()[:, None])

    def launch(reduce: bool, start: Tensor, factor: Tensor, term: Tensor) -> None:
        apply_kernel[(rows, chunks, tiles)](
            x, *values.stride(), *lower, floats(theta), start, floats(y), factor, term, heads, sites, chunks, width,
            X_COMPLEX=values.is_complex(), REDUCE=reduce, **shared,
        )  # fmt: skip

    with torch.cuda.device_of(theta):
        if chunks > 1:
            factor, term = start.new_empty((rows, chunks, 2)), start.new_empty((rows, chunks, width, 2))
            launch(True, start, factor, term)
            start = floats(linear_carries(factor, term, initial, reverse=False))
        launch(False, start, start, start)
    return y


def apply_backward(
    gradient: Tensor, y: Tensor, lower: Tensor, theta: Tensor, initial: Tensor, heads: int, real: bool, tile: ColumnTile
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx (R, N, M), sum_M Y y and sum_M Y y_{i-1} (R, N), and the sum of p_0-like carries: dy_{-1} (R, M)."""
    rows, sites, width = y.shape
    dx = torch.empty_like(y, dtype=torch.float32 if real else y.dtype)
    chunks, tiles = -(-sites // tile.sites), max(1, -(-width // tile.columns))
    applied, before = theta.new_empty((tiles, rows, sites)), theta.new_empty((tiles, rows, sites))
    dinitial = torch.empty_like(initial, memory_format=torch.contiguous_format)
    if y.numel() == 0:
        return dx, torch.zeros_like(theta), torch.zeros_like(theta), dinitial
    lower, shared = _hopping(lower, tile)
    gradient, first = floats(gradient.contiguous()), floats(initial.contiguous())
    zero = torch.zeros_like(initial)
    start = floats(zero[:, None])

    def launch(reduce: bool, start: Tensor, factor: Tensor, term: Tensor) -> None:
        apply_backward_kernel[(rows, chunks, tiles)](
            gradient, floats(y), *lower, floats(theta), first, start, floats(dx), floats(applied), floats(before),
            floats(dinitial), factor, term, heads, sites, chunks, width, rows,
            X_COMPLEX=not real, REDUCE=reduce, **shared,
        )  # fmt: skip

    with torch.cuda.device_of(theta):
        if chunks > 1:
            factor, term = start.new_empty((rows, chunks, 2)), start.new_empty((rows, chunks, width, 2))
            launch(True, start, factor, term)
            start = floats(linear_carries(factor, term, zero, reverse=True))
        launch(False, start, start, start)
    return dx, applied.sum(0), before.sum(0), dinitial


def _hopping(lower: Tensor, tile: ColumnTile) -> tuple[tuple, dict]:
    """l as (pointer, strides), and the flags of a launch; l (R,) is one number a row, R apart by one."""
    constant = lower.ndim == 1
    if constant:
        lower = lower.contiguous()
    flags = {"L_COMPLEX": lower.is_complex(), "CONSTANT": constant}
    flags.update(P=tile.lanes, E=tile.per_lane, W=tile.columns, num_warps=tile.warps)
    return (floats(lower), *((1, 0, 0) if constant else strides(lower))), flags
