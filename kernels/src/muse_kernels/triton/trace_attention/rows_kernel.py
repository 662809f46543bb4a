"""The forward pass: Σ_j p_tj v_j, ‖p_t‖² and the logarithm of the softmax's sum, a block of queries a program.

Logits are scaled to powers of two. Beside the running maximum and Σ 2^(x − max) a row keeps Σ 2^(2 (x − max)), which
shrinks by the square where the maximum rises; both are at least 1 and at most the number of slots.
"""

import triton
import triton.language as tl


@triton.jit
def load_tile(base, start, stride, places, lanes, end, width, MASKED: tl.constexpr, EVEN: tl.constexpr):
    """(places, lanes) of a strided matrix from row `start`; zero past `end` where MASKED, past `width` unless EVEN."""
    pointers = base + start.to(tl.int64) * stride + places[:, None] * stride + lanes[None, :]
    if MASKED:
        if EVEN:
            return tl.load(pointers, mask=start + places[:, None] < end, other=0.0)
        return tl.load(pointers, mask=(start + places[:, None] < end) & (lanes[None, :] < width), other=0.0)
    if EVEN:
        return tl.load(pointers)
    return tl.load(pointers, mask=lanes[None, :] < width, other=0.0)


@triton.jit
def seen_by(slot, last, first, FIRST: tl.constexpr):
    """Whether a query, whose own slot is `last`, sees a slot; the two broadcast."""
    if FIRST:
        return (slot <= last) & (slot >= first)
    return slot <= last


@triton.jit
def _through(
    accumulator, largest, total, squares, query, key, key_n, value, value_n, begin, end, slots_end, last, first,
    factor, key_width, value_width, MASKED: tl.constexpr, FIRST: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
    M: tl.constexpr, EVEN_K: tl.constexpr, EVEN_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The rows' sums after the slots from begin to end."""
    places, k_lanes, m_lanes = tl.arange(0, S), tl.arange(0, K), tl.arange(0, M)
    for start in range(begin, end, S):
        start = tl.multiple_of(start, S)
        keys = load_tile(key, start, key_n, places, k_lanes, slots_end, key_width, MASKED, EVEN_K)
        scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION)
        if MASKED:
            seen = seen_by((start + places)[None, :], last[:, None], first[:, None], FIRST)
            scores = tl.where(seen, scores, float("-inf"))
        raised = tl.maximum(largest, tl.max(scores, 1) * factor)
        if MASKED:
            shift = tl.where(raised == float("-inf"), 0.0, raised)
        else:
            shift = raised
        weights = tl.exp2(scores * factor - shift[:, None])
        shrink = tl.exp2(largest - shift)
        total = total * shrink + tl.sum(weights, 1)
        squares = squares * (shrink * shrink) + tl.sum(weights * weights, 1)
        values = load_tile(value, start, value_n, places, m_lanes, slots_end, value_width, MASKED, EVEN_M)
        accumulator = accumulator * shrink[:, None]
        accumulator = tl.dot(weights.to(values.dtype), values, accumulator, input_precision=PRECISION)
        largest = raised
    return accumulator, largest, total, squares


@triton.jit
def rows_kernel(
    query, query_b, query_n, query_h, key, key_b, key_n, key_h, value, value_b, value_n, value_h, first, output,
    logarithm, squares_out, tokens, slots, heads, repeat, factor, key_width, value_width, FIRST: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, K: tl.constexpr, M: tl.constexpr, EVEN_K: tl.constexpr, EVEN_M: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a block of R queries of a head; late blocks, which see most, start first."""
    blocks = tl.cdiv(tokens, R)
    row = tl.program_id(0) // blocks
    top = (blocks - 1 - tl.program_id(0) % blocks) * R
    b, h = (row // heads).to(tl.int64), row % heads
    g = h // repeat
    rows = tl.arange(0, R)
    inside = top + rows < tokens
    query += b * query_b + h.to(tl.int64) * query_h
    key += b * key_b + g.to(tl.int64) * key_h
    value += b * value_b + g.to(tl.int64) * value_h
    queries = load_tile(query, top, query_n, rows, tl.arange(0, K), tokens, key_width, True, EVEN_K)
    slots_end = slots + tokens
    last = slots + top + rows
    end = tl.minimum(slots + top + R, slots_end)
    full_end = (slots + top + 1) // S * S
    accumulator = tl.zeros((R, M), tl.float32)
    largest = tl.full((R,), float("-inf"), tl.float32)
    total, squares = tl.zeros((R,), tl.float32), tl.zeros((R,), tl.float32)
    begin, full = 0, 0
    limit = last
    if FIRST:
        limit = tl.load(first + b * tokens + top + rows, mask=inside, other=0)
        begin = tl.load(first + b * tokens + top) // S * S
        latest = tl.load(first + b * tokens + tl.minimum(top + R, tokens) - 1)
        full = tl.minimum(tl.cdiv(latest, S) * S, tl.cdiv(end, S) * S)
        accumulator, largest, total, squares = _through(
            accumulator, largest, total, squares, queries, key, key_n, value, value_n, begin, full, slots_end, last,
            limit, factor, key_width, value_width, True, FIRST, S, K, M, EVEN_K, EVEN_M, PRECISION,
        )  # fmt: skip
    accumulator, largest, total, squares = _through(
        accumulator, largest, total, squares, queries, key, key_n, value, value_n, full, full_end, slots_end, last,
        limit, factor, key_width, value_width, False, FIRST, S, K, M, EVEN_K, EVEN_M, PRECISION,
    )  # fmt: skip
    accumulator, largest, total, squares = _through(
        accumulator, largest, total, squares, queries, key, key_n, value, value_n, tl.maximum(full, full_end), end,
        slots_end, last, limit, factor, key_width, value_width, True, FIRST, S, K, M, EVEN_K, EVEN_M, PRECISION,
    )  # fmt: skip
    own = b * heads * tokens + h * tokens + top + rows
    tl.store(logarithm + own, largest + tl.log2(total), mask=inside)
    tl.store(squares_out + own, squares / (total * total), mask=inside)
    lanes = tl.arange(0, M)
    places = (b * tokens + top + rows[:, None]) * (heads * value_width) + h * value_width + lanes[None, :]
    mixed = accumulator / total[:, None]
    tl.store(output + places, mixed.to(output.dtype.element_ty), mask=inside[:, None] & (lanes[None, :] < value_width))
