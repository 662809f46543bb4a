"""The backward pass of the rows: gradients of keys and values by blocks of slots, of queries by blocks of queries.

With dp_tj = s_t ȯ_t·v_j + c_t p_tj, where c_t = 2 ∂/∂‖p_t‖², the logits' gradient is p_tj (dp_tj − Δ_t), Δ_t = Σ_j
p_tj dp_tj. Rows are formed again from the logits and their logarithm; every sum has one order, so that two runs agree.
"""

import triton
import triton.language as tl

from .rows_kernel import load_tile, seen_by


@triton.jit
def _slots_gradient(
    to_key, to_value, keys, values, query, query_n, gradient, gradient_n, logarithm, scale, coefficient, means, first,
    begin, end, tokens, slots, slot, factor, key_width, value_width, MASKED: tl.constexpr, FIRST: tl.constexpr,
    R: tl.constexpr, K: tl.constexpr, M: tl.constexpr, EVEN_K: tl.constexpr, EVEN_M: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What the queries from begin to end add to the gradients of a block of slots."""
    rows, k_lanes, m_lanes = tl.arange(0, R), tl.arange(0, K), tl.arange(0, M)
    for start in range(begin, end, R):
        start = tl.multiple_of(start, R)
        queries = load_tile(query, start, query_n, rows, k_lanes, tokens, key_width, MASKED, EVEN_K)
        scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)  # (slots, queries)
        if MASKED:
            inside = start + rows < tokens
            log = tl.load(logarithm + start + rows, mask=inside, other=float("inf"))
            scales = tl.load(scale + start + rows, mask=inside, other=0.0)
            squared = tl.load(coefficient + start + rows, mask=inside, other=0.0)
            mean = tl.load(means + start + rows, mask=inside, other=0.0)
            limit = slots + start + rows
            if FIRST:
                limit = tl.load(first + start + rows, mask=inside, other=0)
        else:
            log = tl.load(logarithm + start + rows)
            scales = tl.load(scale + start + rows)
            squared = tl.load(coefficient + start + rows)
            mean = tl.load(means + start + rows)
        weights = tl.exp2(scores * factor - log[None, :])
        if MASKED:
            seen = seen_by(slot[:, None], (slots + start + rows)[None, :], limit[None, :], FIRST)
            weights = tl.where(seen, weights, 0.0)
        gradients = load_tile(gradient, start, gradient_n, rows, m_lanes, tokens, value_width, MASKED, EVEN_M)
        scaled = (weights * scales[None, :]).to(gradients.dtype)
        to_value = tl.dot(scaled, gradients, to_value, input_precision=PRECISION)
        products = tl.dot(values, tl.trans(gradients), input_precision=PRECISION)
        logits = weights * (products * scales[None, :] + weights * squared[None, :] - mean[None, :])
        to_key = tl.dot(logits.to(queries.dtype), queries, to_key, input_precision=PRECISION)
    return to_key, to_value


@triton.jit
def slots_gradient_kernel(
    query, query_b, query_n, query_h, key, key_b, key_n, key_h, value, value_b, value_n, value_h, gradient, gradient_b,
    gradient_n, gradient_h, logarithm, scale, coefficient, means, first, until, to_key, to_value, tokens, slots, heads,
    repeat, factor, logit_scale, key_width, value_width, FIRST: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    K: tl.constexpr, M: tl.constexpr, EVEN_K: tl.constexpr, EVEN_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a block of S slots of a key head: over the queries of the heads that it serves."""
    slots_end = slots + tokens
    blocks = tl.cdiv(slots_end, S)
    row = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks * S  # early slots, which most queries see, first
    groups = heads // repeat
    b, g = (row // groups).to(tl.int64), row % groups
    places, k_lanes, m_lanes = tl.arange(0, S), tl.arange(0, K), tl.arange(0, M)
    slot = start + places
    keys = load_tile(
        key + b * key_b + g.to(tl.int64) * key_h, start, key_n, places, k_lanes, slots_end, key_width, True, EVEN_K
    )
    values = load_tile(
        value + b * value_b + g.to(tl.int64) * value_h, start, value_n, places, m_lanes, slots_end, value_width, True,
        EVEN_M,
    )  # fmt: skip
    dk, dv = tl.zeros((S, K), tl.float32), tl.zeros((S, M), tl.float32)
    begin = tl.maximum(start - slots, 0) // R * R
    whole = tl.cdiv(tl.maximum(start + S - 1 - slots, 0), R) * R
    end, whole_end = tokens, tokens // R * R
    if FIRST:
        first += b * tokens
        end = tl.load(until + b * slots_end + tl.minimum(start + S, slots_end) - 1)
        whole_end = tl.load(until + b * slots_end + start) // R * R
    if start + S > slots_end:
        whole_end = begin  # the last block of slots is not whole
    for r in range(0, repeat):
        h = g * repeat + r
        rows = b * heads * tokens + h * tokens
        q, d = query + b * query_b + h.to(tl.int64) * query_h, gradient + b * gradient_b + h.to(tl.int64) * gradient_h
        dk, dv = _slots_gradient(
            dk, dv, keys, values, q, query_n, d, gradient_n, logarithm + rows, scale + rows, coefficient + rows,
            means + rows, first, begin, tl.minimum(whole, end), tokens, slots, slot, factor, key_width,
            value_width, True, FIRST, R, K, M, EVEN_K, EVEN_M, PRECISION,
        )  # fmt: skip
        dk, dv = _slots_gradient(
            dk, dv, keys, values, q, query_n, d, gradient_n, logarithm + rows, scale + rows, coefficient + rows,
            means + rows, first, whole, whole_end, tokens, slots, slot, factor, key_width,
            value_width, False, FIRST, R, K, M, EVEN_K, EVEN_M, PRECISION,
        )  # fmt: skip
        dk, dv = _slots_gradient(
            dk, dv, keys, values, q, query_n, d, gradient_n, logarithm + rows, scale + rows, coefficient + rows,
            means + rows, first, tl.maximum(whole, whole_end), end, tokens, slots, slot, factor, key_width,
            value_width, True, FIRST, R, K, M, EVEN_K, EVEN_M, PRECISION,
        )  # fmt: skip
    inside = slot[:, None] < slots_end
    own = (b * slots_end + slot[:, None]) * groups + g
    dk_places, dv_places = own * key_width + k_lanes[None, :], own * value_width + m_lanes[None, :]
    dk = (dk * logit_scale).to(to_key.dtype.element_ty)
    tl.store(to_key + dk_places, dk, mask=inside & (k_lanes[None, :] < key_width))
    dv = dv.to(to_value.dtype.element_ty)
    tl.store(to_value + dv_places, dv, mask=inside & (m_lanes[None, :] < value_width))


@triton.jit
def _queries_gradient(
    to_query, queries, gradients, key, key_n, value, value_n, log, scales, squared, mean, begin, end, slots_end, last,
    first, factor, key_width, value_width, MASKED: tl.constexpr, FIRST: tl.constexpr, S: tl.constexpr,
    K: tl.constexpr, M: tl.constexpr, EVEN_K: tl.constexpr, EVEN_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the slots from begin to end add to the gradient of a block of queries."""
    places, k_lanes, m_lanes = tl.arange(0, S), tl.arange(0, K), tl.arange(0, M)
    for start in range(begin, end, S):
        start = tl.multiple_of(start, S)
        keys = load_tile(key, start, key_n, places, k_lanes, slots_end, key_width, MASKED, EVEN_K)
        values = load_tile(value, start, value_n, places, m_lanes, slots_end, value_width, MASKED, EVEN_M)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        weights = tl.exp2(scores * factor - log[:, None])
        if MASKED:
            seen = seen_by((start + places)[None, :], last[:, None], first[:, None], FIRST)
            weights = tl.where(seen, weights, 0.0)
        products = tl.dot(gradients, tl.trans(values), input_precision=PRECISION)
        logits = weights * (products * scales[:, None] + weights * squared[:, None] - mean[:, None])
        to_query = tl.dot(logits.to(keys.dtype), keys, to_query, input_precision=PRECISION)
    return to_query


@triton.jit
def queries_gradient_kernel(
    query, query_b, query_n, query_h, key, key_b, key_n, key_h, value, value_b, value_n, value_h, gradient, gradient_b,
    gradient_n, gradient_h, logarithm, scale, coefficient, means, first, to_query, tokens, slots, heads, repeat, factor,
    logit_scale, key_width, value_width, FIRST: tl.constexpr, R: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
    M: tl.constexpr, EVEN_K: tl.constexpr, EVEN_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a block of R queries of a head; late blocks, which see most, start first."""
    blocks = tl.cdiv(tokens, R)
    row = tl.program_id(0) // blocks
    top = (blocks - 1 - tl.program_id(0) % blocks) * R
    b, h = (row // heads).to(tl.int64), row % heads
    g = h // repeat
    rows, k_lanes, m_lanes = tl.arange(0, R), tl.arange(0, K), tl.arange(0, M)
    inside = top + rows < tokens
    queries = load_tile(
        query + b * query_b + h.to(tl.int64) * query_h, top, query_n, rows, k_lanes, tokens, key_width, True, EVEN_K
    )
    gradients = load_tile(
        gradient + b * gradient_b + h.to(tl.int64) * gradient_h, top, gradient_n, rows, m_lanes, tokens, value_width,
        True, EVEN_M,
    )  # fmt: skip
    key += b * key_b + g.to(tl.int64) * key_h
    value += b * value_b + g.to(tl.int64) * value_h
    own = b * heads * tokens + h * tokens + top + rows
    log = tl.load(logarithm + own, mask=inside, other=float("inf"))
    scales = tl.load(scale + own, mask=inside, other=0.0)
    squared = tl.load(coefficient + own, mask=inside, other=0.0)
    mean = tl.load(means + own, mask=inside, other=0.0)
    slots_end = slots + tokens
    last = slots + top + rows
    end = tl.minimum(slots + top + R, slots_end)
    full_end = (slots + top + 1) // S * S
    dq = tl.zeros((R, K), tl.float32)
    full = 0
    limit = last
    if FIRST:
        limit = tl.load(first + b * tokens + top + rows, mask=inside, other=0)
        begin = tl.load(first + b * tokens + top) // S * S
        latest = tl.load(first + b * tokens + tl.minimum(top + R, tokens) - 1)
        full = tl.minimum(tl.cdiv(latest, S) * S, tl.cdiv(end, S) * S)
        dq = _queries_gradient(
            dq, queries, gradients, key, key_n, value, value_n, log, scales, squared, mean, begin, full, slots_end,
            last, limit, factor, key_width, value_width, True, FIRST, S, K, M, EVEN_K, EVEN_M, PRECISION,
        )  # fmt: skip
    dq = _queries_gradient(
        dq, queries, gradients, key, key_n, value, value_n, log, scales, squared, mean, full, full_end, slots_end,
        last, limit, factor, key_width, value_width, False, FIRST, S, K, M, EVEN_K, EVEN_M, PRECISION,
    )  # fmt: skip
    dq = _queries_gradient(
        dq, queries, gradients, key, key_n, value, value_n, log, scales, squared, mean, tl.maximum(full, full_end),
        end, slots_end, last, limit, factor, key_width, value_width, True, FIRST, S, K, M, EVEN_K, EVEN_M, PRECISION,
    )  # fmt: skip
    places = (b * tokens + top + rows[:, None]) * (heads * key_width) + h * key_width + k_lanes[None, :]
    dq = (dq * logit_scale).to(to_query.dtype.element_ty)
    tl.store(to_query + places, dq, mask=inside[:, None] & (k_lanes[None, :] < key_width))
