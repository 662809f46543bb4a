"""What a piece of a row does to the state, and the carries over the pieces. Letters as in `scan_kernels`."""

import triton
import triton.language as tl

from .tiles import load_state, load_tile, row_of_program, store_state


@triton.jit
def transitions_kernel(
    key, value, inverse, factors, kept, terms, transitions, tokens, heads, rows_in_all, key_b, key_n, key_h, value_b,
    value_n, value_h,
    K: tl.constexpr, M: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, C: tl.constexpr, FULL: tl.constexpr,
    DELTA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """B and A of S -> A S + B: the states after a row from zero, terms (B H, K, M), and after the same row without
    values from the unit matrix, transitions (B H, K, K). BM columns of either a program, those of B first.

    As `forward_kernel` without what reads the state.
    """
    TILES: tl.constexpr = (M + BM - 1) // BM
    row, b, h = row_of_program(rows_in_all, heads)
    rows = tl.arange(0, C)
    square = rows[:, None] * C + rows[None, :]
    depth = tl.arange(0, BK)
    part = tl.program_id(0)
    given = part < TILES
    columns = tl.where(given, part, part - TILES) * BM + tl.arange(0, BM)
    operand = key.dtype.element_ty
    chunks = tl.cdiv(tokens, C)
    key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    factors += row * chunks * 3 * C
    kept += row * chunks
    if DELTA:
        inverse += row * chunks * C * C
    held_columns = given & (columns < M)
    state = tl.where((depth[:, None] == columns[None, :]) & (part >= TILES), 1.0, 0.0)

    for chunk in range(0, chunks):
        inside = chunk * C + rows < tokens
        k = load_tile(key, key_n, rows, depth, inside, K, FULL)
        cells = value + rows[:, None] * value_n + columns[None, :]
        stored = tl.load(cells, mask=inside[:, None] & held_columns[None, :], other=0.0)
        to_end = tl.load(factors + 2 * C + rows)
        if DELTA:
            at_write = tl.load(factors + C + rows)
            solve = tl.load(inverse + square)
            missing = stored - at_write[:, None] * tl.dot(k, state.to(operand), input_precision=PRECISION)
            solved = tl.dot(solve, missing.to(operand), input_precision=PRECISION)
            written = (to_end[:, None] * solved).to(operand)
            inverse += C * C
        else:
            written = (to_end[:, None] * stored).to(operand)
        state = tl.dot(tl.trans(k), written, state * tl.load(kept + chunk), input_precision=PRECISION)
        key += C * key_n
        value += C * value_n
        factors += 3 * C

    if given:
        store_state(terms + row * K * M, depth, columns, state, K, M, FULL)
    else:
        store_state(transitions + row * K * K, depth, columns, state, K, K, FULL)


@triton.jit
def carry_states_kernel(
    factors, terms, state, before, after, heads, pieces,
    K: tl.constexpr, M: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """S -> A S + B over the pieces, or from the last on and with A transposed if REVERSE; BM columns a program.

    A (B P, H, K, K) and B (B P, H, K, M), the first S and the last (B, H, K, M), S before each piece (B P, H, K, M).
    """
    row = tl.program_id(0).to(tl.int64)
    b, h = row // heads, row % heads
    depth = tl.arange(0, BK)
    columns = tl.program_id(1) * BM + tl.arange(0, BM)
    square = (depth[:, None] < K) & (depth[None, :] < K)
    at = depth[None, :] * K + depth[:, None] if REVERSE else depth[:, None] * K + depth[None, :]
    s = load_state(state + row * K * M, depth, columns, K, M, False)
    for step in range(0, pieces):
        place = pieces - 1 - step if REVERSE else step
        cell = (b * pieces + place) * heads + h
        store_state(before + cell * K * M, depth, columns, s, K, M, False)
        factor = tl.load(factors + cell * K * K + at, mask=square, other=0.0)
        term = load_state(terms + cell * K * M, depth, columns, K, M, False)
        s = tl.dot(factor, s, term, input_precision="ieee")
    store_state(after + row * K * M, depth, columns, s, K, M, False)
