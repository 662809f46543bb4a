"""theta and the values by the kernels that suit their shape, and the values' adjoint. No autograd."""

import torch
from torch import Tensor

from .column_apply_launches import run_columns, run_columns_back
from .lane_apply_launches import run_lanes, run_lanes_back
from .row_launches import left_green
from .rows import Rows, inside_tokens
from .tiles import ColumnTile, LaneTile, Tile, column_tile, lane_backward_tile, lane_tile


def apply_forward(
    rows: Rows, values: Tensor, initial: Tensor, tile: Tile | None = None, columns: ColumnTile | None = None,
    lanes: LaneTile | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B, H, N, M), laid out as the values, and theta (R, N) of values (B, H, N, M) and y before the row (R, M).

    `lanes` asks for the kernel over lanes, `tile` for theta and `columns` for the values alone.
    """
    _, _, sites, width = values.shape
    if not (lanes or tile or columns):
        lanes = lane_tile(initial.shape[0], sites, width, inside_tokens(values))
    if lanes:
        return run_lanes(rows, values, initial, lanes)
    theta = left_green(rows, tile)
    return run_columns(values, rows.lower, theta, initial, columns or column_tile(len(theta), sites, width)), theta


def apply_backward(
    gradient: Tensor, y: Tensor, lower: Tensor, theta: Tensor, initial: Tensor, dtype: torch.dtype, hopping: bool,
    columns: ColumnTile | None = None, lanes: LaneTile | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx (B, H, N, M), sum_M Y y (R, N), what l gets, and the gradient of y before the row; as `run_lanes_back`."""
    (rows, sites), width = theta.shape, y.shape[-1]
    operands = (gradient, y, lower, theta, initial, dtype)
    if not (lanes or columns):
        lanes = lane_backward_tile(rows, sites, width)
    if lanes:
        return run_lanes_back(*operands, hopping, lanes)
    dx, applied, before, dinitial = run_columns_back(*operands, columns or column_tile(rows, sites, width))
    if hopping and lower.ndim == 1:
        before = (theta * before).sum(1)
    return dx, applied, before, dinitial
