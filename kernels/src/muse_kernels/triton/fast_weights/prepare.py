"""What a chunk of fast weights needs before any state: scores, decay factors and, for the delta rule, an inverse."""

import triton
import triton.language as tl

from .decay import across, between, from_start, load_gates, to_end
from .tiles import load_tile, row_of_program


@triton.jit
def prepare_kernel(
    query,
    key,
    log_decay,
    rate,
    resets,
    scores,
    inverse,
    factors,
    kept,
    tokens,
    heads,
    rows_in_all,
    query_b,
    query_n,
    query_h,
    key_b,
    key_n,
    key_h,
    decay_b,
    decay_n,
    decay_h,
    rate_b,
    rate_n,
    rate_h,
    resets_b,
    resets_n,
    K: tl.constexpr,
    BK: tl.constexpr,
    C: tl.constexpr,
    LEAF: tl.constexpr,
    JOIN: tl.constexpr,
    FULL: tl.constexpr,
    DELTA: tl.constexpr,
    READ_BEFORE: tl.constexpr,
    HAS_RESETS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One chunk of one head: scores (C, C), inverse (C, C), factors (3, C), and the state's decay across the chunk."""
    chunk = tl.program_id(0)
    row, b, h = row_of_program(rows_in_all, heads)
    cell = row * tl.num_programs(0) + chunk
    rows = tl.arange(0, C)
    depth = tl.arange(0, BK)
    start = tl.cast(chunk, tl.int64) * C
    inside = start + rows < tokens
    if HAS_RESETS:
        resets += b * resets_b + start * resets_n
    rates, at_read, after, total, segment, last = load_gates(
        log_decay, decay_b, decay_n, decay_h, rate, rate_b, rate_n, rate_h, resets, resets_n, b, h, start, rows, inside,
        READ_BEFORE, HAS_RESETS,
    )  # fmt: skip

    tl.store(factors + cell * 3 * C + rows, from_start(at_read, segment, HAS_RESETS))
    tl.store(factors + cell * 3 * C + C + rows, from_start(after, segment, HAS_RESETS))
    tl.store(factors + cell * 3 * C + 2 * C + rows, to_end(after, total, segment, last, HAS_RESETS) * rates)
    tl.store(kept + cell, across(total, last, HAS_RESETS))

    q = load_tile(query + b * query_b + h * query_h + start * query_n, query_n, rows, depth, inside, K, FULL)
    k = load_tile(key + b * key_b + h * key_h + start * key_n, key_n, rows, depth, inside, K, FULL)
    square = cell * C * C + rows[:, None] * C + rows[None, :]
    read = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    seen = between(at_read, after, segment, rows, READ_BEFORE, HAS_RESETS) * rates[None, :]
    read *= seen
    tl.store(scores + square, read.to(scores.dtype.element_ty))
    if DELTA:
        lower = tl.dot(k, tl.trans(k), input_precision=PRECISION)
        lengths = lengths_of_keys(lower, rows)
        if READ_BEFORE:
            lower *= between(after, after, segment, rows, True, HAS_RESETS) * rates[None, :]
        else:
            lower *= tl.where(rows[:, None] > rows[None, :], seen, 0.0)
        solved = invert_of_keys(lower, lengths, rows, C, LEAF, JOIN, PRECISION)
        tl.store(inverse + square, solved.to(inverse.dtype.element_ty))


@triton.jit
def lengths_of_keys(products, rows):
    """(C,) |k_i| from the products k_i k_j (C, C), rounded to powers of two: 1 where |k_i|^2 is from 1/2 to below 2."""
    squares = tl.sum(tl.where(rows[:, None] == rows[None, :], products, 0.0), axis=1)
    exponents = (squares.to(tl.int32, bitcast=True) >> 23) - 126
    return (((exponents >> 1) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def invert_of_keys(
    lower, lengths, rows, C: tl.constexpr, LEAF: tl.constexpr, JOIN: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """`invert_unit_lower` of keys of any length. Keys of one length give entries of at most 2 where rate |k|^2 <= 2;
    others |k_i| / |k_j| times as much, which is taken out before and put back: powers of two round nothing."""
    unlike = tl.max(tl.abs(lengths - 1.0)) > 0.0
    if unlike:
        lower *= lengths[None, :] / lengths[:, None]
    solved = invert_unit_lower(lower, rows, C, LEAF, JOIN, PRECISION)
    if unlike:
        solved *= lengths[:, None] / lengths[None, :]
    return solved


@triton.jit
def invert_unit_lower(lower, rows, C: tl.constexpr, LEAF: tl.constexpr, JOIN: tl.constexpr, PRECISION: tl.constexpr):
    """(I + lower)^-1 of a strictly lower (C, C): diagonal blocks of LEAF by substitution, then pairs of blocks joined
    by products of operands in JOIN. Of blocks of 2 the inverse is I - lower.

    In float16 operands keep the ten bits that tf32 keeps, in half the memory; with rate |k|^2 <= 2 and keys of one
    length no number of the inverse is larger than 2. The product of I + (-lower)^(2^k) needs neither, but its powers
    grow like binomials for alike keys.
    """
    if LEAF == 2:
        paired = (rows[:, None] >> 1) == (rows[None, :] >> 1)
        whole = tl.where(paired, -lower, 0.0) + (rows[:, None] == rows[None, :]).to(tl.float32)
    else:
        BLOCKS: tl.constexpr = C // LEAF
        block = tl.arange(0, BLOCKS)
        diagonal = (block[:, None] == block[None, :])[:, None, :, None]
        blocks = tl.sum(tl.where(diagonal, tl.reshape(lower, (BLOCKS, LEAF, BLOCKS, LEAF)), 0.0), axis=2)
        line = tl.arange(0, LEAF)
        unit = (line[:, None] == line[None, :]).to(tl.float32)
        solved = tl.zeros((BLOCKS, LEAF, LEAF), tl.float32) + unit[None, :, :]
        for i in range(1, LEAF):
            here = (line == i)[None, :, None]
            coefficients = tl.sum(tl.where(here, blocks, 0.0), axis=1)
            solved = tl.where(here, solved - tl.sum(coefficients[:, :, None] * solved, axis=1)[:, None, :], solved)
        whole = tl.reshape(tl.where(diagonal, solved[:, :, None, :], 0.0), (C, C))
    for level in tl.static_range(1, 6):
        if (1 << level) >= LEAF and (1 << level) < C:
            apart = (rows[:, None] >> level) != (rows[None, :] >> level)
            paired = (rows[:, None] >> (level + 1)) == (rows[None, :] >> (level + 1))
            joint = tl.where(apart & paired, lower, 0.0).to(JOIN)
            known = whole.to(JOIN)
            right = tl.dot(joint, known, input_precision=PRECISION).to(JOIN)
            whole -= tl.dot(known, right, input_precision=PRECISION)
    return whole
