"""The states between the pieces of a row, one after the other."""

import triton
import triton.language as tl

from .fast_weights_tiles import load_state, store_state


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
