"""theta of long rows in one pass over memory: the chunks of a row one after the other, without a second read.

Enough rows to fill the device take a program each, which runs through its chunks, the next one's loads on their way.
Fewer rows take a program a chunk, and each chunk hands theta to the next through memory as soon as it knows it.
"""

import triton
import triton.language as tl

from .complex import load_complex, multiply
from .moebius import act, lane_prefixes
from .sites import from_previous_lane, load_sites, repeat, row_start, store_sites
from .tridiagonal import load_tridiagonal, shifted, thetas


@triton.jit
def left_green_loop_kernel(
    a_ptr, a_outer, a_inner, a_stride, l_ptr, u_ptr, z_ptr, initial_ptr, theta_ptr, heads, sites, chunks,
    A_COMPLEX: tl.constexpr, UNIT: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """theta (R, N) from theta before the row, initial (R,); l and u are one complex number a row, (R,) contiguous."""
    row = tl.program_id(0)
    tr, ti = load_complex(initial_ptr + row.to(tl.int64) * 2)
    lr, li = load_complex(l_ptr + row.to(tl.int64) * 2)
    ur, ui = load_complex(u_ptr + row.to(tl.int64) * 2)
    pr, pi = multiply(lr, li, ur, ui)
    pr, pi = repeat(pr, E), repeat(pi, E)
    lane = tl.arange(0, P)
    base = row.to(tl.int64) * sites * 2
    a = row_start(a_ptr, row, heads, a_outer, a_inner, A_COMPLEX)
    ar, ai = load_sites(a, row * 0, sites, a_stride, A_COMPLEX, UNIT, MASKED, P, E)
    for chunk in range(0, chunks):
        first = chunk * (P * E)
        # The last chunk loads itself again rather than what lies past the row.
        ahead = tl.minimum(chunk + 1, chunks - 1) * (P * E)
        next_r, next_i = load_sites(a, ahead, sites, a_stride, A_COMPLEX, UNIT, MASKED, P, E)
        # Shifted when it is used: arithmetic on what is still on its way would wait for it.
        dr, di = shifted(ar, ai, z_ptr, row, E)
        er, ei = act(lane_prefixes(dr, di, pr, pi, E), tr, ti)
        sr, si = from_previous_lane(er, tr, P), from_previous_lane(ei, ti, P)
        tr = tl.sum(tl.where(lane == P - 1, er, 0.0), axis=0)
        ti = tl.sum(tl.where(lane == P - 1, ei, 0.0), axis=0)
        theta_r, theta_i = thetas(dr, di, pr, pi, sr, si, E)
        store_sites(theta_ptr + base, first, sites, theta_r, theta_i, True, MASKED, P, E)
        ar, ai = next_r, next_i


@triton.jit
def left_green_chain_kernel(
    a_ptr, a_outer, a_inner, a_stride, l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride,
    z_ptr, initial_ptr, theta_ptr, link_ptr, heads, rows, sites, chunks,
    A_COMPLEX: tl.constexpr, L_COMPLEX: tl.constexpr, U_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr,
    UNIT: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """theta (R, N) from theta before the row, initial (R,) as int64: a complex number as one word.

    Links (R, C) of the same kind hold theta before each chunk, -1 until it is known; so the number and the news of it
    arrive at once. Behind them the counter of the programs, from -1 on, which numbers them in the order in which they
    start: whoever waits, waits for a program that runs. All rows' chunks of one place come before those of the next.
    """
    number = tl.atomic_add(link_ptr + rows.to(tl.int64) * chunks, 1, sem="relaxed") + 1
    row, chunk = (number % rows).to(tl.int32), (number // rows).to(tl.int32)
    first = chunk * (P * E)
    dr, di, pr, pi = load_tridiagonal(
        a_ptr, a_outer, a_inner, a_stride, l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride,
        z_ptr, row, heads, first, sites, A_COMPLEX, L_COMPLEX, U_COMPLEX, CONSTANT, UNIT, MASKED, P, E,
    )  # fmt: skip
    products = lane_prefixes(dr, di, pr, pi, E)
    link = link_ptr + row.to(tl.int64) * chunks + chunk
    source = link if chunk > 0 else initial_ptr + row
    word = tl.load(source, volatile=True)
    while (word == -1) & (chunk > 0):
        word = tl.load(source, volatile=True)
    tr = word.to(tl.int32).to(tl.float32, bitcast=True)
    ti = (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    er, ei = act(products, tr, ti)
    low = er.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    word = (ei.to(tl.int32, bitcast=True).to(tl.int64) << 32) | low
    # Two not-a-numbers may read as -1, for which the next chunk would wait for ever.
    word = tl.where(word == -1, 0x7FC000007FC00000, word)
    lane = tl.arange(0, P)
    tl.atomic_xchg(link + 1 + lane * 0, word, mask=(lane == P - 1) & (chunk + 1 < chunks), sem="relaxed")
    sr, si = from_previous_lane(er, tr, P), from_previous_lane(ei, ti, P)
    base = row.to(tl.int64) * sites * 2
    theta_r, theta_i = thetas(dr, di, pr, pi, sr, si, E)
    store_sites(theta_ptr + base, first, sites, theta_r, theta_i, True, MASKED, P, E)
