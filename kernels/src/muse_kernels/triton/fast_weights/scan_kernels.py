"""Scans over the chunks with a state in registers: forward, the states again, their gradients backward.

Letters: C tokens of a chunk, K and M widths, BK and BM their tiles; b rate, E_ij = exp(c_i - c_j) for i >= j with c the
running sum of the log-decay, * elementwise. A chunk that starts from state S computes
    R = V                                  (hebbian)
    R = T (V - e^c K S),  T = (I + L)^-1,  L_ij = b_j k_i.k_j E_ij for i > j   (delta)
    O = e^c Q S + P R,  P_ij = b_j q_i.k_j E_ij,    S' = e^{c_C} S + (b e^{c_C - c} K)^T R
R is what a write of rate 1 would store: the rate stands in the columns, so the backward never divides by it.
With dS' the gradient of the state after the chunk,
    dV = P^T dO + b e^{c_C - c} K dS'      (delta: T^T of this)
    dS = e^{c_C} dS' + (e^c Q)^T dO        (delta: - (e^c K)^T dV)
P, T and the factors e^c, b e^{c_C - c}, e^{c_C} come from prepare. Source: mathematics §3.
"""

import triton
import triton.language as tl

from .tiles import first_state, load_tile, row_of_program, store_state, store_tile


@triton.jit
def forward_kernel(
    query,
    key,
    value,
    scores,
    inverse,
    factors,
    kept,
    initial,
    output,
    final,
    residual,
    tokens,
    heads,
    rows_in_all,
    query_b,
    query_n,
    query_h,
    key_b,
    key_n,
    key_h,
    value_b,
    value_n,
    value_h,
    K: tl.constexpr,
    M: tl.constexpr,
    BK: tl.constexpr,
    BM: tl.constexpr,
    C: tl.constexpr,
    FULL: tl.constexpr,
    DELTA: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One head, BM columns of its state: output, final state and, for the delta rule, R."""
    row, b, h = row_of_program(rows_in_all, heads)
    rows = tl.arange(0, C)
    square = rows[:, None] * C + rows[None, :]
    depth = tl.arange(0, BK)
    columns = tl.program_id(0) * BM + tl.arange(0, BM)
    operand = key.dtype.element_ty
    chunks = tl.cdiv(tokens, C)
    query += b * query_b + h * query_h
    key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    scores += row * chunks * C * C
    factors += row * chunks * 3 * C
    kept += row * chunks
    output_n = heads * M
    output += b * tokens * output_n + h * M
    if DELTA:
        residual += b * tokens * output_n + h * M
        inverse += row * chunks * C * C
    state = first_state(initial, row, depth, columns, K, M, BK, BM, FULL, HAS_INITIAL)

    for chunk in range(0, chunks):
        inside = chunk * C + rows < tokens
        q = load_tile(query, query_n, rows, depth, inside, K, FULL)
        k = load_tile(key, key_n, rows, depth, inside, K, FULL)
        stored = load_tile(value, value_n, rows, columns, inside, M, FULL)
        read = tl.load(scores + square)
        at_read = tl.load(factors + rows)
        to_end = tl.load(factors + 2 * C + rows)

        held = state.to(operand)
        if DELTA:
            at_write = tl.load(factors + C + rows)
            solve = tl.load(inverse + square)
            missing = stored - at_write[:, None] * tl.dot(k, held, input_precision=PRECISION)
            solved = tl.dot(solve, missing.to(operand), input_precision=PRECISION)
            stored = solved.to(operand)
            written = (to_end[:, None] * solved).to(operand)
        else:
            written = (to_end[:, None] * stored).to(operand)
        # The state first, as the next chunk waits for nothing else.
        state = tl.dot(tl.trans(k), written, state * tl.load(kept + chunk), input_precision=PRECISION)
        out = tl.dot(q, held, input_precision=PRECISION) * at_read[:, None]
        out = tl.dot(read, stored, out, input_precision=PRECISION)
        store_tile(output, output_n, rows, columns, inside, out, M, FULL)
        if DELTA:
            store_tile(residual, output_n, rows, columns, inside, stored, M, FULL)
            residual += C * output_n
            inverse += C * C

        query += C * query_n
        key += C * key_n
        value += C * value_n
        scores += C * C
        factors += 3 * C
        output += C * output_n

    store_state(final + row * K * M, depth, columns, state, K, M, FULL)


@triton.jit
def states_kernel(
    key,
    residual,
    factors,
    kept,
    initial,
    states,
    tokens,
    heads,
    rows_in_all,
    key_b,
    key_n,
    key_h,
    residual_b,
    residual_n,
    residual_h,
    K: tl.constexpr,
    M: tl.constexpr,
    BK: tl.constexpr,
    BM: tl.constexpr,
    C: tl.constexpr,
    FULL: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The state at every chunk start, (BK, BM) of it a program; stored (B H, chunks, K, M)."""
    PARTS: tl.constexpr = (K + BK - 1) // BK
    row, b, h = row_of_program(rows_in_all, heads)
    rows = tl.arange(0, C)
    depth = tl.program_id(0) % PARTS * BK + tl.arange(0, BK)
    columns = tl.program_id(0) // PARTS * BM + tl.arange(0, BM)
    chunks = tl.cdiv(tokens, C)
    key += b * key_b + h * key_h
    residual += b * residual_b + h * residual_h
    factors += row * chunks * 3 * C + 2 * C
    kept += row * chunks
    states += row * chunks * K * M
    state = first_state(initial, row, depth, columns, K, M, BK, BM, FULL, HAS_INITIAL)

    for chunk in range(0, chunks):
        store_state(states, depth, columns, state, K, M, FULL)
        inside = chunk * C + rows < tokens
        k = load_tile(key, key_n, rows, depth, inside, K, FULL)
        stored = load_tile(residual, residual_n, rows, columns, inside, M, FULL)
        to_end = tl.load(factors + rows)
        written = (to_end[:, None] * stored).to(k.dtype)
        state = tl.dot(tl.trans(k), written, state * tl.load(kept + chunk), input_precision=PRECISION)
        states += K * M
        key += C * key_n
        residual += C * residual_n
        factors += 3 * C


@triton.jit
def ends_kernel(
    query,
    key,
    scores,
    inverse,
    factors,
    kept,
    grad_output,
    grad_final,
    grad_ends,
    grad_value,
    grad_initial,
    tokens,
    heads,
    rows_in_all,
    query_b,
    query_n,
    query_h,
    key_b,
    key_n,
    key_h,
    grad_output_b,
    grad_output_n,
    grad_output_h,
    K: tl.constexpr,
    M: tl.constexpr,
    BK: tl.constexpr,
    BM: tl.constexpr,
    C: tl.constexpr,
    FULL: tl.constexpr,
    DELTA: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of the states at every chunk end, last chunk first, BM columns a program; of value and of initial."""
    row, b, h = row_of_program(rows_in_all, heads)
    rows = tl.arange(0, C)
    square = rows[:, None] * C + rows[None, :]
    depth = tl.arange(0, BK)
    columns = tl.program_id(0) * BM + tl.arange(0, BM)
    operand = key.dtype.element_ty
    chunks = tl.cdiv(tokens, C)
    cell = row * chunks + chunks - 1
    first = tl.cast(chunks - 1, tl.int64) * C
    query += b * query_b + h * query_h + first * query_n
    key += b * key_b + h * key_h + first * key_n
    grad_output += b * grad_output_b + h * grad_output_h + first * grad_output_n
    grad_value_n = heads * M
    grad_value += (b * tokens + first) * grad_value_n + h * M
    scores += cell * C * C
    factors += cell * 3 * C
    grad_ends += cell * K * M
    if DELTA:
        inverse += cell * C * C
    grad = first_state(grad_final, row, depth, columns, K, M, BK, BM, FULL, HAS_FINAL)

    for step in range(0, chunks):
        inside = (chunks - 1 - step) * C + rows < tokens
        q = load_tile(query, query_n, rows, depth, inside, K, FULL)
        k = load_tile(key, key_n, rows, depth, inside, K, FULL)
        do = load_tile(grad_output, grad_output_n, rows, columns, inside, M, FULL)
        read = tl.load(scores + square)
        at_read = tl.load(factors + rows)
        to_end = tl.load(factors + 2 * C + rows)

        held = grad.to(operand)
        store_state(grad_ends, depth, columns, held, K, M, FULL)
        dv = tl.dot(k, held, input_precision=PRECISION) * to_end[:, None]
        dv = tl.dot(tl.trans(read), do, dv, input_precision=PRECISION)
        if DELTA:
            solve = tl.load(inverse + square)
            dv = tl.dot(tl.trans(solve), dv.to(operand), input_precision=PRECISION)
            inverse -= C * C
        store_tile(grad_value, grad_value_n, rows, columns, inside, dv, M, FULL)
        reads = (at_read[:, None] * do).to(operand)
        grad = tl.dot(tl.trans(q), reads, grad * tl.load(kept + cell - step), input_precision=PRECISION)
        if DELTA:
            at_write = tl.load(factors + C + rows)
            corrected = (-at_write[:, None] * dv).to(operand)
            grad = tl.dot(tl.trans(k), corrected, grad, input_precision=PRECISION)

        query -= C * query_n
        key -= C * key_n
        grad_output -= C * grad_output_n
        grad_value -= C * grad_value_n
        scores -= C * C
        factors -= 3 * C
        grad_ends -= K * M

    store_state(grad_initial + row * K * M, depth, columns, grad, K, M, FULL)
