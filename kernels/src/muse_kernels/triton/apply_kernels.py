"""The linear recurrence of the values, y_i = theta_i (x_i - l_i y_{i-1}), and its adjoint, for tiles of W columns.

One program takes P x E consecutive sites and W of the M values of one row; its tensors are (P, W), one for each of a
lane's E sites, and theta and l are read once for each column, so that nothing moves between lanes but the carries.
Chunks of long rows are carried as in the other kernels.
"""

import triton
import triton.language as tl

from .columns import from_next_lane, from_previous_lane, load_column, load_edge, load_step, store_column, store_edge
from .complex import multiply, multiply_add, then_linear
from .sites import row_start


@triton.jit
def apply_kernel(
    x_ptr, x_outer, x_inner, x_stride, x_column, l_ptr, l_outer, l_inner, l_stride, theta_ptr, start_ptr, y_ptr,
    factor_ptr, term_ptr, heads, sites, chunks, width,
    X_COMPLEX: tl.constexpr, L_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr, REDUCE: tl.constexpr,
    P: tl.constexpr, E: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """y (R, N, M) from the y before each chunk, start (R, C, M); REDUCE stores each chunk's factor and terms."""
    row, chunk, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    at = row.to(tl.int64) * chunks + chunk
    column = (tile * W + tl.arange(0, W))[None, :]
    site = chunk * (P * E) + tl.arange(0, P)[:, None] * E
    x = row_start(x_ptr, row, heads, x_outer, x_inner, X_COMPLEX)
    l = row_start(l_ptr, row, 1 if CONSTANT else heads, l_outer, l_inner, L_COMPLEX)
    theta = theta_ptr + row.to(tl.int64) * sites * 2
    # Each lane's map y -> f y + b; the steps y -> c y + v are kept for the second pass.
    fr, fi = tl.full((P, W), 1.0, tl.float32), tl.zeros((P, W), tl.float32)
    br, bi = tl.zeros((P, W), tl.float32), tl.zeros((P, W), tl.float32)
    vr, vi, cr, ci = (), (), (), ()
    for e in tl.static_range(E):
        tr, ti, sr, si = load_step(theta, l, l_stride, site + e, sites, L_COMPLEX, CONSTANT, P, W)
        xr, xi = load_column(x, site + e, sites, width, column, x_stride, x_column, X_COMPLEX, P, W)
        xr, xi = multiply(tr, ti, xr, xi)
        fr, fi = multiply(sr, si, fr, fi)
        br, bi = multiply_add(sr, si, br, bi, xr, xi)
        vr, vi, cr, ci = vr + (xr,), vi + (xi,), cr + (sr,), ci + (si,)
    fr, fi, br, bi = tl.associative_scan((fr, fi, br, bi), 0, then_linear)
    if REDUCE:
        store_edge(factor_ptr, at, 1, column - tile * W, fr, fi, P - 1, P)
        store_edge(term_ptr, at, width, column, br, bi, P - 1, P)
    else:
        start_r, start_i = load_edge(start_ptr, at, width, column)
        yr, yi = multiply_add(fr, fi, start_r, start_i, br, bi)
        yr, yi = from_previous_lane(yr, start_r, P, W), from_previous_lane(yi, start_i, P, W)
        y = y_ptr + row.to(tl.int64) * sites * width * 2
        for e in tl.static_range(E):
            yr, yi = multiply_add(cr[e], ci[e], yr, yi, vr[e], vi[e])
            store_column(y, site + e, sites, width, column, yr, yi, True, P, W)


@triton.jit
def apply_backward_kernel(
    gradient_ptr, y_ptr, l_ptr, l_outer, l_inner, l_stride, theta_ptr, initial_ptr, start_ptr,
    dx_ptr, applied_ptr, before_ptr, dinitial_ptr, factor_ptr, term_ptr, heads, sites, chunks, width, rows,
    X_COMPLEX: tl.constexpr, L_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr, REDUCE: tl.constexpr,
    P: tl.constexpr, E: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Y_i = g_i + s_{i+1}, s_i = -l_i theta_i Y_i from s after each chunk, start (R, C, M); dx_i = theta_i Y_i.

    Besides dx (R, N, M): applied = sum_M Y_i y_i and before = sum_M Y_i y_{i-1}, (T, R, N) for T column tiles.
    Gradient and y are contiguous (R, N, M); theta^2 tau of mathematics §1 is theta times `applied`, so x is not read.
    """
    row, chunk, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    at = row.to(tl.int64) * chunks + chunk
    column = (tile * W + tl.arange(0, W))[None, :]
    site = chunk * (P * E) + tl.arange(0, P)[:, None] * E
    l = row_start(l_ptr, row, 1 if CONSTANT else heads, l_outer, l_inner, L_COMPLEX)
    theta = theta_ptr + row.to(tl.int64) * sites * 2
    base = row.to(tl.int64) * sites * width
    fr, fi = tl.full((P, W), 1.0, tl.float32), tl.zeros((P, W), tl.float32)
    br, bi = tl.zeros((P, W), tl.float32), tl.zeros((P, W), tl.float32)
    for k in tl.static_range(E):
        now = site + (E - 1 - k)
        tr, ti, cr, ci = load_step(theta, l, l_stride, now, sites, L_COMPLEX, CONSTANT, P, W)
        gr, gi = load_column(gradient_ptr + base * 2, now, sites, width, column, width, 1, True, P, W)
        fr, fi = multiply(cr, ci, fr, fi)
        br, bi = multiply(cr, ci, br + gr, bi - gi)
    fr, fi, br, bi = tl.associative_scan((fr, fi, br, bi), 0, then_linear, reverse=True)
    if REDUCE:
        store_edge(factor_ptr, at, 1, column - tile * W, fr, fi, 0, P)
        store_edge(term_ptr, at, width, column, br, bi, 0, P)
    else:
        start_r, start_i = load_edge(start_ptr, at, width, column)
        sr, si = multiply_add(fr, fi, start_r, start_i, br, bi)
        if chunk == 0:
            store_edge(dinitial_ptr, row.to(tl.int64), width, column, sr, -si, 0, P)
        sr, si = from_next_lane(sr, start_r, P, W), from_next_lane(si, start_i, P, W)
        initial_r, initial_i = load_edge(initial_ptr, row.to(tl.int64), width, column)
        out = (tile.to(tl.int64) * rows + row) * sites
        y = y_ptr + base * 2
        yr, yi = load_column(y, site + (E - 1), sites, width, column, width, 1, True, P, W)
        for k in tl.static_range(E):
            now = site + (E - 1 - k)
            tr, ti, cr, ci = load_step(theta, l, l_stride, now, sites, L_COMPLEX, CONSTANT, P, W)
            gr, gi = load_column(gradient_ptr + base * 2, now, sites, width, column, width, 1, True, P, W)
            sr, si = sr + gr, si - gi
            xr, xi = multiply(tr, ti, sr, si)
            dx = dx_ptr + base * (2 if X_COMPLEX else 1)
            store_column(dx, now, sites, width, column, xr, -xi, X_COMPLEX, P, W)
            store_total(applied_ptr, out, now, sites, sr, si, yr, yi)
            yr, yi = load_column(y, now - 1, sites, width, column, width, 1, True, P, W)
            yr, yi = tl.where(now == 0, initial_r, yr), tl.where(now == 0, initial_i, yi)
            store_total(before_ptr, out, now, sites, sr, si, yr, yi)
            sr, si = multiply(cr, ci, sr, si)


@triton.jit
def store_total(pointer, out, site, sites, ar, ai, br, bi):
    """Store sum_M a b at each lane's site of a contiguous row."""
    cr, ci = multiply(ar, ai, br, bi)
    address = pointer + (out + site) * 2
    inside = site < sites
    tl.store(address, tl.sum(cr, axis=1, keep_dims=True), mask=inside)
    tl.store(address + 1, tl.sum(ci, axis=1, keep_dims=True), mask=inside)
