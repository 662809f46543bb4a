"""Loads and stores of the fast-weights kernels, masked only where something lies outside."""

import triton
import triton.language as tl


@triton.jit
def load_tile(base, stride, rows, columns, inside, WIDTH: tl.constexpr, FULL: tl.constexpr):
    """Rows `rows` and columns `columns` of a (tokens, WIDTH) matrix, zeros outside; FULL where nothing lies outside."""
    cells = base + rows[:, None] * stride + columns[None, :]
    if FULL:
        return tl.load(cells)
    return tl.load(cells, mask=inside[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def store_tile(base, stride, rows, columns, inside, tile, WIDTH: tl.constexpr, FULL: tl.constexpr):
    """The counterpart of `load_tile`, in the memory's dtype."""
    cells = base + rows[:, None] * stride + columns[None, :]
    tile = tile.to(base.dtype.element_ty)
    if FULL:
        tl.store(cells, tile)
    else:
        tl.store(cells, tile, mask=inside[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def load_state(base, depth, columns, K: tl.constexpr, M: tl.constexpr, FULL: tl.constexpr):
    """Rows `depth` and columns `columns` of a (K, M) state."""
    cells = base + depth[:, None] * M + columns[None, :]
    if FULL:
        return tl.load(cells)
    return tl.load(cells, mask=(depth < K)[:, None] & (columns < M)[None, :], other=0.0)


@triton.jit
def first_state(
    base, row, depth, columns, K: tl.constexpr, M: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr,
    FULL: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """A row's part of a (B H, K, M) state, float32 (BK, BM), from which a scan starts; zeros where none is GIVEN."""
    state = tl.zeros((BK, BM), tl.float32)
    if GIVEN:
        state += load_state(base + row * K * M, depth, columns, K, M, FULL)
    return state


@triton.jit
def store_state(base, depth, columns, state, K: tl.constexpr, M: tl.constexpr, FULL: tl.constexpr):
    """The counterpart of `load_state`, in the memory's dtype."""
    cells = base + depth[:, None] * M + columns[None, :]
    state = state.to(base.dtype.element_ty)
    if FULL:
        tl.store(cells, state)
    else:
        tl.store(cells, state, mask=(depth < K)[:, None] & (columns < M)[None, :])


@triton.jit
def row_of_program(rows, heads):
    """The program's row of B H, its sequence and head: the grid's second axis, and the third where that is too short.

    They may hold a few more than there are rows; those do the last row again and write the same numbers.
    """
    row = tl.minimum(tl.program_id(1) + tl.program_id(2) * tl.num_programs(1), rows - 1)
    return row.to(tl.int64), (row // heads).to(tl.int64), (row % heads).to(tl.int64)
