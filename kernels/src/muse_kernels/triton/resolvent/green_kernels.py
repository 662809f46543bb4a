"""Forward kernels: theta of a stretch of a row, alone or with the two-sided diagonal, and their chunk summaries.

One program takes P x E consecutive sites of one row. A longer row is cut into chunks: REDUCE stores what a chunk does
to a carry, a carry kernel runs over the chunks, and the same kernel without REDUCE starts from the carries.
"""

import triton
import triton.language as tl

from .complex import load_complex, multiply, multiply_add, store_first, store_last, then_linear
from .moebius import act, lane_prefixes
from .sites import from_next_lane, from_previous_lane, load_sites, store_sites
from .tridiagonal import load_couplings, load_tridiagonal, thetas


@triton.jit
def left_green_kernel(
    a_ptr, a_outer, a_inner, a_stride, l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride,
    z_ptr, start_ptr, theta_ptr, green_ptr, summary_ptr, heads, sites, chunks,
    A_COMPLEX: tl.constexpr, L_COMPLEX: tl.constexpr, U_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr,
    REDUCE: tl.constexpr, GREEN: tl.constexpr, UNIT: tl.constexpr, MASKED: tl.constexpr,
    P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """theta (R, N) from the theta before each chunk, start (R, C); with GREEN also G, for rows of one chunk."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    first = chunk * (P * E)
    dr, di, pr, pi = load_tridiagonal(
        a_ptr, a_outer, a_inner, a_stride, l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride,
        z_ptr, row, heads, first, sites, A_COMPLEX, L_COMPLEX, U_COMPLEX, CONSTANT, UNIT, MASKED, P, E,
    )  # fmt: skip
    products = lane_prefixes(dr, di, pr, pi, E)
    at = row.to(tl.int64) * chunks + chunk
    if REDUCE:
        for k in tl.static_range(8):
            store_last(summary_ptr + at * 8 + k, products[k], P)
    else:
        start_r, start_i = load_complex(start_ptr + at * 2)
        tr, ti = act(products, start_r, start_i)
        tr, ti = from_previous_lane(tr, start_r, P), from_previous_lane(ti, start_i, P)
        theta_r, theta_i = thetas(dr, di, pr, pi, tr, ti, E)
        base = row.to(tl.int64) * sites * 2
        store_sites(theta_ptr + base, first, sites, theta_r, theta_i, True, MASKED, P, E)
        if GREEN:
            fr, fi, qr, qi = green_products(pr, pi, theta_r, theta_i, E)
            fr, fi, qr, qi = tl.associative_scan((fr, fi, qr, qi), 0, then_linear, reverse=True)
            qr, qi = from_next_lane(qr, 0.0, P), from_next_lane(qi, 0.0, P)
            store_green(green_ptr + base, first, sites, pr, pi, theta_r, theta_i, qr, qi, MASKED, P, E)


@triton.jit
def full_green_kernel(
    l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride,
    theta_ptr, start_ptr, green_ptr, summary_ptr, heads, sites, chunks,
    L_COMPLEX: tl.constexpr, U_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr,
    REDUCE: tl.constexpr, UNIT: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """G (R, N) from theta and q = p G after each chunk, start (R, C): the second half for rows of several chunks."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    first = chunk * (P * E)
    pr, pi = load_couplings(
        l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride, row, heads, first, sites,
        L_COMPLEX, U_COMPLEX, CONSTANT, UNIT, MASKED, P, E,
    )  # fmt: skip
    base = row.to(tl.int64) * sites * 2
    theta_r, theta_i = load_sites(theta_ptr + base, first, sites, 1, True, True, MASKED, P, E)
    fr, fi, qr, qi = green_products(pr, pi, theta_r, theta_i, E)
    fr, fi, qr, qi = tl.associative_scan((fr, fi, qr, qi), 0, then_linear, reverse=True)
    at = row.to(tl.int64) * chunks + chunk
    if REDUCE:
        linear = (fr, fi, qr, qi)
        for k in tl.static_range(4):
            store_first(summary_ptr + at * 4 + k, linear[k], P)
    else:
        start_r, start_i = load_complex(start_ptr + at * 2)
        qr, qi = multiply_add(fr, fi, start_r, start_i, qr, qi)
        qr, qi = from_next_lane(qr, start_r, P), from_next_lane(qi, start_i, P)
        store_green(green_ptr + base, first, sites, pr, pi, theta_r, theta_i, qr, qi, MASKED, P, E)


@triton.jit
def green_products(pr, pi, theta_r, theta_i, E: tl.constexpr):
    """Each lane's map of q = p G from its right end to its left one: q -> f q + b, from q_i = p theta (1 + theta q)."""
    br, bi = multiply(pr[E - 1], pi[E - 1], theta_r[E - 1], theta_i[E - 1])
    fr, fi = multiply(br, bi, theta_r[E - 1], theta_i[E - 1])
    for k in tl.static_range(1, E):
        ur, ui = multiply(pr[E - 1 - k], pi[E - 1 - k], theta_r[E - 1 - k], theta_i[E - 1 - k])
        vr, vi = multiply(ur, ui, theta_r[E - 1 - k], theta_i[E - 1 - k])
        fr, fi = multiply(vr, vi, fr, fi)
        br, bi = multiply_add(vr, vi, br, bi, ur, ui)
    return fr, fi, br, bi


@triton.jit
def store_green(
    pointer, first, sites, pr, pi, theta_r, theta_i, qr, qi, MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr
):  # fmt: skip
    """G_i = theta_i (1 + theta_i q_{i+1}) of each lane, from q after it."""
    green_r, green_i = (), ()
    for k in tl.static_range(E):
        sr, si = multiply_add(theta_r[E - 1 - k], theta_i[E - 1 - k], qr, qi, 1.0, 0.0)
        gr, gi = multiply(theta_r[E - 1 - k], theta_i[E - 1 - k], sr, si)
        qr, qi = multiply(pr[E - 1 - k], pi[E - 1 - k], gr, gi)
        green_r = (gr,) + green_r
        green_i = (gi,) + green_i
    store_sites(pointer, first, sites, green_r, green_i, True, MASKED, P, E)
