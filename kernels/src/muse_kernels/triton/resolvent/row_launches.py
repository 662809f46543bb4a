"""Launches of the kernels that read long rows once, and the choice among all that compute theta."""

import torch
from torch import Tensor

from ..memory import floats
from .green_launches import left_green_forward, links
from .row_kernels import left_green_chain_kernel, left_green_loop_kernel
from .rows import Rows, operands
from .tiles import CHAIN, CHAIN_ROWS, LONGEST, LOOP, LOOP_ROWS, Tile, left_tile


def left_green(rows: Rows, tile: Tile | None = None) -> Tensor:
    """theta (R, N), by the kernel that suits its shape, or by chunks of `tile`."""
    outer, heads, sites = rows.diagonal.shape
    constant = rows.lower.ndim == 1
    if tile is None and LONGEST // 2 < sites <= LONGEST and constant and outer * heads >= LOOP_ROWS:
        return left_green_loop(rows, LOOP)
    if tile is None and sites > LONGEST and outer * heads >= CHAIN_ROWS:
        return left_green_chain(rows, CHAIN)
    return left_green_forward(rows, tile or left_tile(sites), full=False)[0]


def left_green_loop(rows: Rows, tile: Tile) -> Tensor:
    """theta (R, N), one program a row; for one l and one u a row."""
    given = operands(*rows[:3])
    theta = rows.energy.new_empty((given.rows, given.sites))
    if theta.numel():
        flags = {name: given.flags[name] for name in ("A_COMPLEX", "UNIT")}
        couplings = (floats(x.contiguous()) for x in (rows.lower, rows.upper))
        with torch.cuda.device_of(theta):
            left_green_loop_kernel[(given.rows,)](
                *given.diagonal, *couplings, floats(rows.energy.contiguous()), floats(rows.theta.contiguous()),
                floats(theta), given.heads, given.sites, given.chunks(tile),
                **flags, MASKED=given.masked(tile), **tile.options,
            )  # fmt: skip
    return theta


def left_green_chain(rows: Rows, tile: Tile) -> Tensor:
    """theta (R, N), one program a chunk, each waiting for the one before it."""
    given = operands(*rows[:3])
    theta = rows.energy.new_empty((given.rows, given.sites))
    if theta.numel():
        chunks = given.chunks(tile)
        with torch.cuda.device_of(theta):
            left_green_chain_kernel[(given.rows * chunks,)](
                *given.diagonal, *given.hopping, floats(rows.energy.contiguous()), floats(rows.theta.contiguous()),
                floats(theta), links(theta, given.rows, chunks),
                given.heads, given.rows, given.sites, chunks,
                **given.flags, MASKED=given.masked(tile), **tile.options,
            )  # fmt: skip
    return theta
