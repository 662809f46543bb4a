"""Launches of the values' kernels with one thread a column. No autograd."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..memory import floats
from .column_apply_kernels import apply_backward_kernel, apply_kernel
from .green_launches import linear_carries
from .rows import gradient_like, laid_out_as, strides
from .tiles import ColumnTile


def run_columns(
    values: Tensor, lower: Tensor, theta: Tensor, initial: Tensor, tile: ColumnTile,
    carries: Callable[..., Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """y (B, H, N, M) of values (B, H, N, M), lower (B, H, N) or (R,), theta (R, N) and y before the row (R, M).

    `carries`, here and below: in place of `linear_carries`, of rows that go on in other processes.
    """
    outer, heads, sites, width = values.shape
    rows = outer * heads
    y = laid_out_as(values, theta.dtype)
    if y.numel() == 0:
        return y
    lower, shared = _hopping(lower, heads, tile)
    grid, sizes = _sizes(rows, heads, sites, tile, width)
    x = floats(values)
    ragged = tile.span % tile.stretch != 0 or sites % tile.span % tile.stretch != 0

    def launch(reduce: bool, start: Tensor, factor: Tensor, term: Tensor) -> None:
        apply_kernel[grid](
            x, *values.stride(), *lower, floats(theta), start, floats(y), *y.stride()[:2], factor, term, *sizes,
            WIDTH=width, Y_STEP=y.stride(2), X_COMPLEX=values.is_complex(), X_UNIT=values.stride(2) == width,
            MASKED=ragged, REDUCE=reduce, **shared,
        )  # fmt: skip

    _launch_chunks(launch, initial, grid[1], carries, reverse=False)
    return y


def run_columns_back(
    gradient: Tensor, y: Tensor, lower: Tensor, theta: Tensor, initial: Tensor, dtype: torch.dtype, tile: ColumnTile,
    carries: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx (B, H, N, M) in `dtype`, sum_M Y y and sum_M Y y_{i-1} (R, N), and the gradient of y before the row (R, M)."""
    outer, heads, sites, width = y.shape
    rows = outer * heads
    dx = laid_out_as(y, dtype)
    dinitial = torch.empty_like(initial, memory_format=torch.contiguous_format)
    if y.numel() == 0:
        return dx, torch.zeros_like(theta), torch.zeros_like(theta), dinitial
    lower, shared = _hopping(lower, heads, tile._replace(stretch=tile.late))
    grid, sizes = _sizes(rows, heads, sites, tile, width)
    applied, before = theta.new_empty((grid[2], rows, sites)), theta.new_empty((grid[2], rows, sites))
    gradient, first = gradient_like(y, gradient), floats(initial.contiguous())

    def launch(reduce: bool, start: Tensor, factor: Tensor, term: Tensor) -> None:
        apply_backward_kernel[grid](
            gradient, floats(y), *y.stride()[:2], *lower, floats(theta), first, start, floats(dx), floats(applied),
            floats(before), floats(dinitial), factor, term, *sizes, WIDTH=width, Y_STEP=y.stride(2),
            X_COMPLEX=dx.is_complex(), REDUCE=reduce, **shared,
        )  # fmt: skip

    _launch_chunks(launch, torch.zeros_like(initial), grid[1], carries, reverse=True)
    applied, before = (x[0] if grid[2] == 1 else x.sum(0) for x in (applied, before))
    return dx, applied, before, dinitial


def _launch_chunks(
    launch: Callable[..., None], initial: Tensor, chunks: int, carries: Callable[..., Tensor] | None, *, reverse: bool
) -> None:
    """Whole rows at once; chunks of them twice, first for what each does to the number (R, M) it starts from."""
    start = floats(initial.contiguous()[:, None])
    with torch.cuda.device_of(initial):
        if chunks > 1 or carries is not None:
            rows, width = initial.shape
            factor, term = start.new_empty((rows, chunks, 2)), start.new_empty((rows, chunks, width, 2))
            launch(True, start, factor, term)
            start = floats((carries or linear_carries)(factor, term, initial, reverse=reverse))
        launch(False, start, start, start)


def _hopping(lower: Tensor, heads: int, tile: ColumnTile) -> tuple[tuple, dict]:
    """l as (pointer, strides), and the flags of a launch; l (R,) is one number a row."""
    constant = lower.ndim == 1
    if constant:
        lower = lower.contiguous()
    flags = {"L_COMPLEX": lower.is_complex(), "CONSTANT": constant}
    flags.update(T=tile.stretch, Q=tile.rows, W=tile.columns, num_warps=tile.warps)
    return (floats(lower), *((heads, 1, 0) if constant else strides(lower))), flags


def _sizes(
    rows: int, heads: int, sites: int, tile: ColumnTile, width: int
) -> tuple[tuple[int, int, int], tuple[int, int, int, int, int]]:
    """The grid, and the kernels' (rows, heads, sites, chunks, span)."""
    chunks = -(-sites // tile.span)
    grid = (-(-rows // tile.rows), chunks, -(-width // tile.columns))
    return grid, (rows, heads, sites, chunks, tile.span)
