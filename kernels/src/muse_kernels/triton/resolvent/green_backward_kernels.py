"""Backward kernels of theta and of the two-sided diagonal, with chunk summaries as in the forward ones.

All sums run over conjugated incoming gradients; what is stored is conjugated back, and real where the leaf is real.
The recurrences carry s_i = p_i w_i (and p_i U_i) to the left and r_i = theta_i^2 R_i to the right instead of the w, U
and R of mathematics §1, so that no coupling of a neighbouring site is read.
"""

import triton
import triton.language as tl

from .carry_kernels import hand_on, next_place, receive
from .complex import load_complex, multiply, multiply_add, store_first, store_last, then_linear
from .site_arithmetic import add_sites, multiply_sites, negated, store_conjugate, store_sum, subtract_sites
from .sites import from_next_lane, from_previous_lane, load_sites
from .tridiagonal import load_hopping


@triton.jit
def left_green_backward_kernel(
    l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride, theta_ptr, initial_ptr, gradient_ptr,
    applied_ptr, before_ptr, start_ptr, summary_ptr, da_ptr, dl_ptr, du_ptr, dz_ptr, dp_ptr, dinitial_ptr,
    heads, rows, sites, chunks,
    A_COMPLEX: tl.constexpr, L_COMPLEX: tl.constexpr, U_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr,
    APPLIED: tl.constexpr, HOPPING: tl.constexpr, REDUCE: tl.constexpr, WHOLE: tl.constexpr, CHAIN: tl.constexpr,
    UNIT: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """w_i = theta_i (theta_i (g_i + s_{i+1}) + q_i), s_i = p_i w_i from s after each chunk, start (R, C).

    APPLIED: q (R, N) is what the values add, and `before` (R, N) is sum_M Y_i y_{i-1}, or its sum with theta (R,) where
    l and u are CONSTANT. HOPPING: l and u want gradients, (R, N) each or (R,), or the sums of p's by chunk. dz
    is the row's sum of w. WHOLE: one chunk holds the row, after which s is zero. CHAIN: s comes from the chunk after
    this one, and start are the links.
    """
    row, chunk, place = tl.program_id(0), tl.program_id(1), 0
    if CHAIN:
        row, place = next_place(start_ptr, rows, chunks)
        chunk = chunks - 1 - place
    first = chunk * (P * E)
    base = row.to(tl.int64) * sites * 2
    at = row.to(tl.int64) * chunks + chunk
    theta_r, theta_i = load_sites(theta_ptr + base, first, sites, 1, True, True, MASKED, P, E)
    g_r, g_i = load_sites(gradient_ptr + base, first, sites, 1, True, True, MASKED, P, E)
    lr, li, ur, ui = load_hopping(
        l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride, row, heads, first, sites,
        L_COMPLEX, U_COMPLEX, CONSTANT, UNIT, MASKED, P, E,
    )  # fmt: skip
    # w_i = c_i + theta_i^2 s_{i+1}: the part known at once is computed once.
    cr, ci = (), ()
    for e in tl.static_range(E):
        r, i = multiply(theta_r[e], theta_i[e], g_r[e], -g_i[e])
        cr = cr + (r,)
        ci = ci + (i,)
    if APPLIED:
        q_r, q_i = load_sites(applied_ptr + base, first, sites, 1, True, True, MASKED, P, E)
        cr, ci = add_sites(cr, ci, q_r, q_i, E)
    fr, fi, br, bi = weighted_lane(theta_r, theta_i, cr, ci, lr, li, ur, ui, E)
    fr, fi, br, bi = tl.associative_scan((fr, fi, br, bi), 0, then_linear, reverse=True)
    if REDUCE:
        linear = (fr, fi, br, bi)
        for k in tl.static_range(4):
            store_first(summary_ptr + at * 4 + k, linear[k], P)
    else:
        sr, si, start_r, start_i = br, bi, 0.0, 0.0
        if CHAIN:
            link = start_ptr + row.to(tl.int64) * chunks + place
            start_r, start_i = receive(link, place, 0.0, 0.0)
            sr, si = multiply_add(fr, fi, start_r, start_i, br, bi)
            hand_on(link + 1, sr, si, (tl.arange(0, P) == 0) & (chunk > 0))
        elif not WHOLE:
            start_r, start_i = load_complex(start_ptr + at * 2)
            sr, si = multiply_add(fr, fi, start_r, start_i, br, bi)
        if chunk == 0:
            store_first(dinitial_ptr + row.to(tl.int64) * 2, sr, P)
            store_first(dinitial_ptr + row.to(tl.int64) * 2 + 1, -si, P)
        sr, si = from_next_lane(sr, start_r, P), from_next_lane(si, start_i, P)
        w_r, w_i = weights(theta_r, theta_i, cr, ci, lr, li, ur, ui, sr, si, E)
        before_r, before_i = load_complex(initial_ptr + row.to(tl.int64) * 2)
        if not WHOLE:
            inner_r, inner_i = before_chunk(theta_ptr + base, chunk, first)
            before_r = tl.where(chunk == 0, before_r, inner_r)
            before_i = tl.where(chunk == 0, before_i, inner_i)
        before_r = from_previous_lane(theta_r[E - 1], before_r, P)
        before_i = from_previous_lane(theta_i[E - 1], before_i, P)
        if HOPPING:
            dp_r, dp_i = (), ()
            for e in tl.static_range(E):
                r, i = multiply(before_r, before_i, w_r[e], w_i[e])
                before_r, before_i = theta_r[e], theta_i[e]
                dp_r = dp_r + (r,)
                dp_i = dp_i + (i,)
            store_coupling_gradients(
                dl_ptr, du_ptr, dp_ptr + at * 2, before_ptr, row, first, sites, theta_r, theta_i,
                lr, li, ur, ui, dp_r, dp_i, L_COMPLEX, U_COMPLEX, CONSTANT, APPLIED, WHOLE, MASKED, P, E,
            )  # fmt: skip
        store_sum(dz_ptr + at * 2, w_r, w_i, E)
        store_conjugate(da_ptr, row, first, sites, negated(w_r, E), negated(w_i, E), A_COMPLEX, MASKED, P, E)


@triton.jit
def green_backward_kernel(
    l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride, theta_ptr, green_ptr, gradient_ptr,
    left_start_ptr, right_start_ptr, summary_ptr, da_ptr, dl_ptr, du_ptr, dz_ptr, dp_ptr, heads, sites, chunks,
    A_COMPLEX: tl.constexpr, L_COMPLEX: tl.constexpr, U_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr,
    HOPPING: tl.constexpr, REDUCE: tl.constexpr, WHOLE: tl.constexpr, UNIT: tl.constexpr, MASKED: tl.constexpr,
    P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """U_i = G_i^2 g_i + theta_i^2 s_{i+1} with s = p U from the right; R_i = g_i + p_i r_{i-1} from the left.

    `left_start` is r before each chunk, `right_start` s after it, (R, C) each; the summary holds both maps. WHOLE: one
    chunk holds the row, and both are zero.
    """
    row, chunk = tl.program_id(0), tl.program_id(1)
    first = chunk * (P * E)
    base = row.to(tl.int64) * sites * 2
    at = row.to(tl.int64) * chunks + chunk
    theta_r, theta_i = load_sites(theta_ptr + base, first, sites, 1, True, True, MASKED, P, E)
    green_r, green_i = load_sites(green_ptr + base, first, sites, 1, True, True, MASKED, P, E)
    g_r, g_i = load_sites(gradient_ptr + base, first, sites, 1, True, True, MASKED, P, E)
    lr, li, ur, ui = load_hopping(
        l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride, row, heads, first, sites,
        L_COMPLEX, U_COMPLEX, CONSTANT, UNIT, MASKED, P, E,
    )  # fmt: skip
    fr, fi, rr, ri, br, bi = two_sided_lane(theta_r, theta_i, green_r, green_i, g_r, g_i, lr, li, ur, ui, E)
    left_r, left_i, rr, ri = tl.associative_scan((fr, fi, rr, ri), 0, then_linear)
    fr, fi, br, bi = tl.associative_scan((fr, fi, br, bi), 0, then_linear, reverse=True)
    if REDUCE:
        left, right = (left_r, left_i, rr, ri), (fr, fi, br, bi)
        for k in tl.static_range(4):
            store_last(summary_ptr + at * 8 + k, left[k], P)
            store_first(summary_ptr + at * 8 + 4 + k, right[k], P)
    else:
        left_start_r, left_start_i, right_start_r, right_start_i, sr, si = 0.0, 0.0, 0.0, 0.0, br, bi
        if not WHOLE:
            left_start_r, left_start_i = load_complex(left_start_ptr + at * 2)
            rr, ri = multiply_add(left_r, left_i, left_start_r, left_start_i, rr, ri)
            right_start_r, right_start_i = load_complex(right_start_ptr + at * 2)
            sr, si = multiply_add(fr, fi, right_start_r, right_start_i, br, bi)
        rr, ri = from_previous_lane(rr, left_start_r, P), from_previous_lane(ri, left_start_i, P)
        sr, si = from_next_lane(sr, right_start_r, P), from_next_lane(si, right_start_i, P)
        u_r, u_i = from_the_right(theta_r, theta_i, green_r, green_i, g_r, g_i, lr, li, ur, ui, sr, si, E)
        dd_r, dd_i, dp_r, dp_i, hr, hi = from_the_left(
            theta_r, theta_i, green_r, green_i, g_r, g_i, lr, li, ur, ui, u_r, u_i, rr, ri, HOPPING, E
        )
        if HOPPING:
            # The lane's first site needs theta and h of the lane before; before the chunk, h = r G / theta.
            tr, ti, kr, ki = 0.0, 0.0, 0.0, 0.0
            if not WHOLE:
                tr, ti = before_chunk(theta_ptr + base, chunk, first)
                kr, ki = before_chunk(green_ptr + base, chunk, first)
                kr, ki = multiply(kr, ki, left_start_r, left_start_i)
                norm = tl.fma(tr, tr, ti * ti)
                norm = 1.0 / tl.where(chunk > 0, norm, 1.0)
                kr, ki = multiply(kr, ki, tr * norm, -ti * norm)
            hr, hi = from_previous_lane(hr, kr, P), from_previous_lane(hi, ki, P)
            tr, ti = from_previous_lane(theta_r[E - 1], tr, P), from_previous_lane(theta_i[E - 1], ti, P)
            vr, vi = multiply(tr, ti, u_r[0], u_i[0])
            vr, vi = multiply_add(green_r[0], green_i[0], hr, hi, vr, vi)
            dp_r = (vr,) + dp_r
            dp_i = (vi,) + dp_i
            store_coupling_gradients(
                dl_ptr, du_ptr, dp_ptr + at * 2, None, row, first, sites, theta_r, theta_i,
                lr, li, ur, ui, dp_r, dp_i, L_COMPLEX, U_COMPLEX, CONSTANT, False, WHOLE, MASKED, P, E,
            )  # fmt: skip
        store_sum(dz_ptr + at * 2, dd_r, dd_i, E)
        store_conjugate(da_ptr, row, first, sites, negated(dd_r, E), negated(dd_i, E), A_COMPLEX, MASKED, P, E)


@triton.jit
def store_coupling_gradients(
    dl_ptr, du_ptr, dp_ptr, before_ptr, row, first, sites, theta_r, theta_i, lr, li, ur, ui, dp_r, dp_i,
    L_COMPLEX: tl.constexpr, U_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr, APPLIED: tl.constexpr,
    WHOLE: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Gradients of l and u from those of p = l u, less theta times `before` for l where APPLIED. CONSTANT along the
    row, one number each where one chunk is the WHOLE row, otherwise the sum of p's."""
    if CONSTANT:
        if WHOLE:
            store_constant_gradients(dl_ptr, du_ptr, before_ptr, row, lr, li, ur, ui, dp_r, dp_i, APPLIED, E)
        else:
            store_sum(dp_ptr, dp_r, dp_i, E)
    else:
        dl_r, dl_i = multiply_sites(ur, ui, dp_r, dp_i, E)
        if APPLIED:
            row_before = before_ptr + row.to(tl.int64) * sites * 2
            e_r, e_i = load_sites(row_before, first, sites, 1, True, True, MASKED, P, E)
            e_r, e_i = multiply_sites(theta_r, theta_i, e_r, e_i, E)
            dl_r, dl_i = subtract_sites(dl_r, dl_i, e_r, e_i, E)
        store_conjugate(dl_ptr, row, first, sites, dl_r, dl_i, L_COMPLEX, MASKED, P, E)
        du_r, du_i = multiply_sites(lr, li, dp_r, dp_i, E)
        store_conjugate(du_ptr, row, first, sites, du_r, du_i, U_COMPLEX, MASKED, P, E)


@triton.jit
def store_constant_gradients(
    dl_ptr, du_ptr, before_ptr, row, lr, li, ur, ui, dp_r, dp_i, APPLIED: tl.constexpr, E: tl.constexpr
):  # fmt: skip
    """conj(u S - before) for l and conj(l S) for u, (R,) complex, with S the sum of p's gradients over the row."""
    sr, si = dp_r[0], dp_i[0]
    for e in tl.static_range(1, E):
        sr += dp_r[e]
        si += dp_i[e]
    sr, si = tl.sum(sr, axis=0), tl.sum(si, axis=0)
    dl_r, dl_i = multiply(ur[0], ui[0], sr, si)
    du_r, du_i = multiply(lr[0], li[0], sr, si)
    at = row.to(tl.int64) * 2
    if APPLIED:
        e_r, e_i = load_complex(before_ptr + at)
        dl_r, dl_i = dl_r - e_r, dl_i - e_i
    tl.store(dl_ptr + at, dl_r)
    tl.store(dl_ptr + at + 1, -dl_i)
    tl.store(du_ptr + at, du_r)
    tl.store(du_ptr + at + 1, -du_i)


@triton.jit
def weights(theta_r, theta_i, cr, ci, lr, li, ur, ui, sr, si, E: tl.constexpr):
    """w of each lane's sites, from s after the lane."""
    w_r, w_i = (), ()
    for k in tl.static_range(E):
        r, i = multiply_add(theta_r[E - 1 - k], theta_i[E - 1 - k], sr, si, cr[E - 1 - k], ci[E - 1 - k])
        r, i = multiply(theta_r[E - 1 - k], theta_i[E - 1 - k], r, i)
        pr, pi = multiply(lr[E - 1 - k], li[E - 1 - k], ur[E - 1 - k], ui[E - 1 - k])
        sr, si = multiply(pr, pi, r, i)
        w_r = (r,) + w_r
        w_i = (i,) + w_i
    return w_r, w_i


@triton.jit
def two_sided_lane(theta_r, theta_i, green_r, green_i, g_r, g_i, lr, li, ur, ui, E: tl.constexpr):
    """Each lane's maps r -> f r + b' to the right and s -> f s + b to the left, as f, b', b.

    f is the product of p theta^2 in both.
    """
    fr, fi = theta_r[0] * 0.0 + 1.0, theta_r[0] * 0.0
    rr, ri = fi, fi
    for e in tl.static_range(E):
        pr, pi = multiply(lr[e], li[e], ur[e], ui[e])
        tr, ti = multiply(theta_r[e], theta_i[e], theta_r[e], theta_i[e])
        rr, ri = multiply_add(pr, pi, rr, ri, g_r[e], -g_i[e])
        rr, ri = multiply(tr, ti, rr, ri)
        pr, pi = multiply(pr, pi, tr, ti)
        fr, fi = multiply(pr, pi, fr, fi)
    br, bi = fi * 0.0, fi * 0.0
    for k in tl.static_range(E):
        br, bi = right_step(
            theta_r[E - 1 - k], theta_i[E - 1 - k], green_r[E - 1 - k], green_i[E - 1 - k],
            g_r[E - 1 - k], -g_i[E - 1 - k], br, bi,
        )  # fmt: skip
        pr, pi = multiply(lr[E - 1 - k], li[E - 1 - k], ur[E - 1 - k], ui[E - 1 - k])
        br, bi = multiply(pr, pi, br, bi)
    return fr, fi, rr, ri, br, bi


@triton.jit
def from_the_right(theta_r, theta_i, green_r, green_i, g_r, g_i, lr, li, ur, ui, sr, si, E: tl.constexpr):
    """U of each lane's sites, from s after the lane."""
    u_r, u_i = (), ()
    for k in tl.static_range(E):
        r, i = right_step(
            theta_r[E - 1 - k], theta_i[E - 1 - k], green_r[E - 1 - k], green_i[E - 1 - k],
            g_r[E - 1 - k], -g_i[E - 1 - k], sr, si,
        )  # fmt: skip
        pr, pi = multiply(lr[E - 1 - k], li[E - 1 - k], ur[E - 1 - k], ui[E - 1 - k])
        sr, si = multiply(pr, pi, r, i)
        u_r = (r,) + u_r
        u_i = (i,) + u_i
    return u_r, u_i


@triton.jit
def from_the_left(
    theta_r, theta_i, green_r, green_i, g_r, g_i, lr, li, ur, ui, u_r, u_i, rr, ri,
    HOPPING: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """From r before each lane: U + G^2 p r of its sites, with HOPPING the gradients of p but the first site's, and
    h = theta G R of the last site."""
    dd_r, dd_i, dp_r, dp_i = (), (), (), ()
    hr, hi = rr, ri
    for e in tl.static_range(E):
        pr, pi = multiply(lr[e], li[e], ur[e], ui[e])
        cr, ci = multiply(pr, pi, rr, ri)
        # d: -(U + G^2 p r), with R - g = p r.
        zr, zi = multiply(green_r[e], green_i[e], green_r[e], green_i[e])
        zr, zi = multiply_add(zr, zi, cr, ci, u_r[e], u_i[e])
        dd_r = dd_r + (zr,)
        dd_i = dd_i + (zi,)
        if HOPPING and e > 0:
            # p_i: theta_{i-1} U_i + G_i h_{i-1}.
            vr, vi = multiply(theta_r[e - 1], theta_i[e - 1], u_r[e], u_i[e])
            vr, vi = multiply_add(green_r[e], green_i[e], hr, hi, vr, vi)
            dp_r = dp_r + (vr,)
            dp_i = dp_i + (vi,)
        tr, ti = multiply(theta_r[e], theta_i[e], cr + g_r[e], ci - g_i[e])
        hr, hi = multiply(tr, ti, green_r[e], green_i[e])
        rr, ri = multiply(tr, ti, theta_r[e], theta_i[e])
    return dd_r, dd_i, dp_r, dp_i, hr, hi


@triton.jit
def weighted_lane(theta_r, theta_i, cr, ci, lr, li, ur, ui, E: tl.constexpr):
    """Each lane's map of s from its right end to its left one, from s_i = p_i theta_i (c_i + theta_i s_{i+1})."""
    fr, fi = theta_r[0] * 0.0 + 1.0, theta_r[0] * 0.0
    br, bi = fi, fi
    for k in tl.static_range(E):
        pr, pi = multiply(lr[E - 1 - k], li[E - 1 - k], ur[E - 1 - k], ui[E - 1 - k])
        pr, pi = multiply(pr, pi, theta_r[E - 1 - k], theta_i[E - 1 - k])
        tr, ti = multiply(pr, pi, theta_r[E - 1 - k], theta_i[E - 1 - k])
        fr, fi = multiply(tr, ti, fr, fi)
        zr, zi = multiply(pr, pi, cr[E - 1 - k], ci[E - 1 - k])
        br, bi = multiply_add(tr, ti, br, bi, zr, zi)
    return fr, fi, br, bi


@triton.jit
def right_step(theta_r, theta_i, green_r, green_i, g_r, g_i, sr, si):
    """U = G^2 g + theta^2 s."""
    ar, ai = multiply(theta_r, theta_i, theta_r, theta_i)
    br, bi = multiply(green_r, green_i, green_r, green_i)
    br, bi = multiply(br, bi, g_r, g_i)
    return multiply_add(ar, ai, sr, si, br, bi)


@triton.jit
def before_chunk(row_ptr, chunk, first):
    """The number at the site before a chunk of a contiguous row; zero before the row."""
    address = row_ptr + (first.to(tl.int64) - 1) * 2
    return tl.load(address, mask=chunk > 0, other=0.0), tl.load(address + 1, mask=chunk > 0, other=0.0)
