"""Gradients of query, key, log-decay and rate, every chunk alone, from the states around it.

Letters as in scan_kernels; S the state before the chunk, dS' the gradient of the one after it:
    dQ = e^c dO S^T + (dO R^T * E b) K
    dK = b A + Z,  A = e^{c_C - c} R dS'^T + (dO R^T * E)^T Q - (dV R^T * E)^T K   (last term: delta, i > j)
    Z = -e^c dV S^T - (dV R^T * E b) K                                             (delta, i > j)
    db = rowsum(K A),  d(log-decay) = suffix sums of rowsum(Q dQ) + rowsum(K Z) - b db, plus the chunk end's own term.
That term comes from S and dS' chunk by chunk: one suffix sum over the whole sequence would gather rounding errors.
"""

import triton
import triton.language as tl

from .decay import across, between, between_transposed, from_start, load_gates, to_end
from .tiles import load_state, load_tile, row_of_program, store_tile


@triton.jit
def gradients_kernel(
    query,
    key,
    residual,
    log_decay,
    rate,
    resets,
    states,
    grad_output,
    grad_ends,
    grad_value,
    grad_query,
    grad_key,
    grad_decay,
    grad_rate,
    tokens,
    heads,
    rows_in_all,
    query_b,
    query_n,
    query_h,
    key_b,
    key_n,
    key_h,
    residual_b,
    residual_n,
    residual_h,
    decay_b,
    decay_n,
    decay_h,
    rate_b,
    rate_n,
    rate_h,
    resets_b,
    resets_n,
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
    READ_BEFORE: tl.constexpr,
    HAS_RESETS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One chunk of one head, BK key columns, gathering over the value columns in tiles of BM.

    grad_rate and grad_decay get one share for each tile of key columns, (tiles, B, N, H), to be summed.
    """
    TILES: tl.constexpr = (K + BK - 1) // BK
    part = tl.program_id(0) % TILES
    chunk = tl.program_id(0) // TILES
    row, b, h = row_of_program(rows_in_all, heads)
    cell = row * (tl.num_programs(0) // TILES) + chunk
    rows = tl.arange(0, C)
    depth = part * BK + tl.arange(0, BK)
    operand = key.dtype.element_ty
    start = tl.cast(chunk, tl.int64) * C
    inside = start + rows < tokens
    residual += b * residual_b + h * residual_h + start * residual_n
    grad_output += b * grad_output_b + h * grad_output_h + start * grad_output_n
    grad_value_n = heads * M
    grad_value += (b * tokens + start) * grad_value_n + h * M
    states += cell * K * M
    grad_ends += cell * K * M

    if HAS_RESETS:
        resets += b * resets_b + start * resets_n
    rates, at_read, after, total, segment, last = load_gates(
        log_decay, decay_b, decay_n, decay_h, rate, rate_b, rate_n, rate_h, resets, resets_n, b, h, start, rows, inside,
        READ_BEFORE, HAS_RESETS,
    )  # fmt: skip

    # Where one tile holds all value columns, every product is made where it is used, so that few are held at once.
    ONE: tl.constexpr = M <= BM
    if ONE:
        columns = tl.arange(0, BM)
        stored = load_tile(residual, residual_n, rows, columns, inside, M, FULL)
        do = load_tile(grad_output, grad_output_n, rows, columns, inside, M, FULL)
        state = load_state(states, depth, columns, K, M, FULL)
        grad_end = load_state(grad_ends, depth, columns, K, M, FULL)
        kept = tl.sum(state.to(tl.float32) * grad_end.to(tl.float32), axis=1)
        if DELTA:
            dv = load_tile(grad_value, grad_value_n, rows, columns, inside, M, FULL)
    else:
        reads = tl.zeros((C, C), tl.float32)
        reads_t = tl.zeros((C, C), tl.float32)
        dq = tl.zeros((C, BK), tl.float32)
        writes = tl.zeros((C, BK), tl.float32)
        kept = tl.zeros((BK,), tl.float32)
        if DELTA:
            solved = tl.zeros((C, C), tl.float32)
            solved_t = tl.zeros((C, C), tl.float32)
            corrects = tl.zeros((C, BK), tl.float32)
        for column in range(0, M, BM):
            columns = column + tl.arange(0, BM)
            stored = load_tile(residual, residual_n, rows, columns, inside, M, FULL)
            do = load_tile(grad_output, grad_output_n, rows, columns, inside, M, FULL)
            state = load_state(states, depth, columns, K, M, FULL)
            grad_end = load_state(grad_ends, depth, columns, K, M, FULL)
            reads = tl.dot(do, tl.trans(stored), reads, input_precision=PRECISION)
            reads_t = tl.dot(stored, tl.trans(do), reads_t, input_precision=PRECISION)
            dq = tl.dot(do, tl.trans(state), dq, input_precision=PRECISION)
            writes = tl.dot(stored, tl.trans(grad_end), writes, input_precision=PRECISION)
            kept += tl.sum(state.to(tl.float32) * grad_end.to(tl.float32), axis=1)
            if DELTA:
                dv = load_tile(grad_value, grad_value_n, rows, columns, inside, M, FULL)
                solved = tl.dot(dv, tl.trans(stored), solved, input_precision=PRECISION)
                solved_t = tl.dot(stored, tl.trans(dv), solved_t, input_precision=PRECISION)
                corrects = tl.dot(dv, tl.trans(state), corrects, input_precision=PRECISION)

    q = load_tile(query + b * query_b + h * query_h + start * query_n, query_n, rows, depth, inside, K, FULL)
    k = load_tile(key + b * key_b + h * key_h + start * key_n, key_n, rows, depth, inside, K, FULL)
    out = (b * tokens + start) * heads * K + h * K

    if ONE:
        reads = tl.dot(do, tl.trans(stored), input_precision=PRECISION)
        dq = tl.dot(do, tl.trans(state), input_precision=PRECISION)
    seen = between(at_read, after, segment, rows, READ_BEFORE, HAS_RESETS) * rates[None, :]
    reads *= seen
    dq *= from_start(at_read, segment, HAS_RESETS)[:, None]
    dq = tl.dot(reads.to(operand), k, dq, input_precision=PRECISION)
    store_tile(grad_query + out, heads * K, rows, depth, inside, dq, K, FULL)
    by_read = tl.sum(q * dq, axis=1)
    if DELTA:
        if ONE:
            solved = tl.dot(dv, tl.trans(stored), input_precision=PRECISION)
            corrects = tl.dot(dv, tl.trans(state), input_precision=PRECISION)
        if READ_BEFORE:
            solved *= -between(after, after, segment, rows, True, HAS_RESETS) * rates[None, :]
        else:
            solved *= tl.where(rows[:, None] > rows[None, :], -seen, 0.0)
        corrects *= -from_start(after, segment, HAS_RESETS)[:, None]
        corrects = tl.dot(solved.to(operand), k, corrects, input_precision=PRECISION)

    if ONE:
        writes = tl.dot(stored, tl.trans(grad_end), input_precision=PRECISION)
        reads_t = tl.dot(stored, tl.trans(do), input_precision=PRECISION)
    writes *= to_end(after, total, segment, last, HAS_RESETS)[:, None]
    end = tl.sum(kept, axis=0) * across(total, last, HAS_RESETS) + tl.sum(tl.sum(k * writes, axis=1) * rates, axis=0)
    seen_t = between_transposed(at_read, after, segment, rows, READ_BEFORE, HAS_RESETS)
    reads_t *= seen_t
    writes = tl.dot(reads_t.to(operand), q, writes, input_precision=PRECISION)
    if DELTA:
        if ONE:
            solved_t = tl.dot(stored, tl.trans(dv), input_precision=PRECISION)
        if READ_BEFORE:
            solved_t *= -between_transposed(after, after, segment, rows, True, HAS_RESETS)
        else:
            solved_t *= tl.where(rows[None, :] > rows[:, None], -seen_t, 0.0)
        writes = tl.dot(solved_t.to(operand), k, writes, input_precision=PRECISION)
    by_rate = tl.sum(k * writes, axis=1)
    by_decay = by_read - rates * by_rate
    dk = rates[:, None] * writes
    if DELTA:
        by_decay += tl.sum(k * corrects, axis=1)
        dk += corrects
    store_tile(grad_key + out, heads * K, rows, depth, inside, dk, K, FULL)

    later = decay_gradient(by_decay, by_read, end, resets, resets_n, rows, inside, READ_BEFORE, HAS_RESETS)
    batches = rows_in_all // heads
    gates = ((part * batches + b) * tokens + start + rows) * heads + h
    tl.store(grad_rate + gates, by_rate, mask=inside)
    tl.store(grad_decay + gates, later, mask=inside)


@triton.jit
def decay_gradient(
    by_decay, by_read, end, resets, resets_n, rows, inside, READ_BEFORE: tl.constexpr, HAS_RESETS: tl.constexpr
):  # fmt: skip
    """Gradient of each token's log-decay (C,), zero at a reset, from those of its running sums and of the chunk end."""
    later = tl.cumsum(by_decay, axis=0, reverse=True) + end
    if READ_BEFORE:
        later -= by_read
    if HAS_RESETS:
        later = tl.where(tl.load(resets + rows * resets_n, mask=inside, other=0) != 0, 0.0, later)
    return later
