"""theta of long rows in one pass over memory: the chunks of a row one after the other, without a second read.

Enough rows to fill the device take a program each, which runs through its chunks, the next one's loads on their way.
Fewer rows take a program a chunk, and each chunk hands theta to the next through memory as soon as it knows it.
"""

import triton
import triton.language as tl

from .carry_kernels import hand_on, next_place, receive
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
    # theta before the chunk, the same in all lanes.
    tr, ti = tr + tl.zeros((P,), tl.float32), ti + tl.zeros((P,), tl.float32)
    last = tl.arange(0, P) * 0 + (P - 1)
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
        tr, ti = tl.gather(er, last, axis=0), tl.gather(ei, last, axis=0)
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
    """theta (R, N) from theta before the row, initial (R,); theta goes from chunk to chunk by links."""
    row, chunk = next_place(link_ptr, rows, chunks)
    first = chunk * (P * E)
    dr, di, pr, pi = load_tridiagonal(
        a_ptr, a_outer, a_inner, a_stride, l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride,
        z_ptr, row, heads, first, sites, A_COMPLEX, L_COMPLEX, U_COMPLEX, CONSTANT, UNIT, MASKED, P, E,
    )  # fmt: skip
    products = lane_prefixes(dr, di, pr, pi, E)
    link = link_ptr + row.to(tl.int64) * chunks + chunk
    tr, ti = load_complex(initial_ptr + row.to(tl.int64) * 2)
    tr, ti = receive(link, chunk, tr, ti)
    er, ei = act(products, tr, ti)
    hand_on(link + 1, er, ei, (tl.arange(0, P) == P - 1) & (chunk + 1 < chunks))
    sr, si = from_previous_lane(er, tr, P), from_previous_lane(ei, ti, P)
    base = row.to(tl.int64) * sites * 2
    theta_r, theta_i = thetas(dr, di, pr, pi, sr, si, E)
    store_sites(theta_ptr + base, first, sites, theta_r, theta_i, True, MASKED, P, E)
