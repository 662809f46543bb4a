"""Readings of all whole chunks at once, f(q; W) = q + (SiLU(q A) * q B) C^T: a program a chunk, row and head.

Backwards, with h = SiLU(a) * r, a = q A, r = q B and bars for adjoints: h_bar = o_bar C, a_bar = h_bar * r * SiLU'(a),
r_bar = h_bar * SiLU(a); q_bar = o_bar + a_bar A^T + r_bar B^T, A_bar = q^T a_bar, B_bar = q^T r_bar, C_bar = o_bar^T h.
"""

import triton
import triton.language as tl

from .tiles import activations, product


@triton.jit
def read_kernel(
    starts,
    query,
    output,
    rows,
    heads,
    tokens,
    query_b,
    query_h,
    query_t,
    C: tl.constexpr,
    K: tl.constexpr,
    E: tl.constexpr,
    T: tl.constexpr,
):
    """`starts` (n, B, H, 3, K, E), `query` (B, H, n C, K) of any strides but the last, `output` (B, n C, H, K)."""
    HALF: tl.constexpr = starts.dtype.element_ty
    i, row = tl.program_id(0).to(tl.int64) // rows, tl.program_id(0).to(tl.int64) % rows
    b, h = row // heads, row % heads
    ks, es, ts = tl.arange(0, K), tl.arange(0, E), tl.arange(0, T)
    wide = ks[:, None] * E + es[None, :]
    tall = es[:, None] + ks[None, :] * E
    gate = starts + (i * rows + row) * 3 * K * E
    for first in range(0, C, T):
        inside = (first + ts < C)[:, None]
        at = (i * C + first + ts)[:, None]
        q = tl.load(query + b * query_b + h * query_h + at * query_t + ks[None, :], mask=inside, other=0.0)
        raised = product(q, tl.load(gate + K * E + wide), HALF)
        hidden, _, _ = activations(product(q, tl.load(gate + wide), HALF), raised)
        found = q.to(tl.float32) + product(hidden, tl.load(gate + 2 * K * E + tall), HALF)
        place = ((b * tokens + at) * heads + h) * K + ks[None, :]
        tl.store(output + place, found.to(HALF), mask=inside)


@triton.jit
def read_back_kernel(
    starts,
    query,
    to_output,
    to_starts,
    to_query,
    rows,
    heads,
    tokens,
    query_b,
    query_h,
    query_t,
    to_output_b,
    to_output_t,
    to_output_h,
    C: tl.constexpr,
    K: tl.constexpr,
    E: tl.constexpr,
    T: tl.constexpr,
):
    """As `read_kernel`; `to_output` (B, n C, H, K) of any strides but the last, `to_query` contiguous as `output`."""
    HALF: tl.constexpr = starts.dtype.element_ty
    SIZE: tl.constexpr = K * E
    i, row = tl.program_id(0).to(tl.int64) // rows, tl.program_id(0).to(tl.int64) % rows
    b, h = row // heads, row % heads
    ks, es, ts = tl.arange(0, K), tl.arange(0, E), tl.arange(0, T)
    wide = ks[:, None] * E + es[None, :]
    tall = es[:, None] + ks[None, :] * E
    gate, to_gate = starts + (i * rows + row) * 3 * SIZE, to_starts + (i * rows + row) * 3 * SIZE
    of_gate, of_up, of_down = (tl.zeros((K, E), tl.float32), tl.zeros((K, E), tl.float32), tl.zeros((K, E), tl.float32))
    for first in range(0, C, T):
        inside = (first + ts < C)[:, None]
        at = (i * C + first + ts)[:, None]
        q = tl.load(query + b * query_b + h * query_h + at * query_t + ks[None, :], mask=inside, other=0.0)
        place = to_output + b * to_output_b + at * to_output_t + h * to_output_h + ks[None, :]
        of_output = tl.load(place, mask=inside, other=0.0)
        opening = product(q, tl.load(gate + wide), HALF)
        raised = product(q, tl.load(gate + SIZE + wide), HALF)
        hidden, silu, slope = activations(opening, raised)
        of_hidden = product(of_output, tl.load(gate + 2 * SIZE + wide), HALF)
        of_down += product(tl.trans(of_output), hidden, HALF)
        of_opening, of_raised = of_hidden * raised * slope, of_hidden * silu
        of_gate += product(tl.trans(q), of_opening, HALF)
        of_up += product(tl.trans(q), of_raised, HALF)
        found = of_output.to(tl.float32) + product(of_opening, tl.load(gate + tall), HALF)
        found += product(of_raised, tl.load(gate + SIZE + tall), HALF)
        tl.store(to_query + ((b * tokens + at) * heads + h) * K + ks[None, :], found.to(HALF), mask=inside)
    tl.store(to_gate + wide, of_gate.to(HALF))
    tl.store(to_gate + SIZE + wide, of_up.to(HALF))
    tl.store(to_gate + 2 * SIZE + wide, of_down.to(HALF))
