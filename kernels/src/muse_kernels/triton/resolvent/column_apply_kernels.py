"""The linear recurrence of the values, y_i = theta_i (x_i - l_i y_{i-1}), and its adjoint, one thread a column.

Rows times columns are enough threads for a GPU, so each runs through its sites in order, its loads ahead of the
arithmetic; nothing moves between threads. Where they are too few, rows are cut into chunks of `span` sites:
REDUCE stores what a chunk does to y, a carry kernel runs over the chunks, the same kernel starts from the carries.
"""

import triton
import triton.language as tl

from .columns import load_number, load_pair, load_steps, load_stretch, store_pair, store_tile
from .complex import multiply, multiply_add


@triton.jit
def apply_kernel(
    x_ptr, x_outer, x_inner, x_stride, x_column, l_ptr, l_outer, l_inner, l_stride, theta_ptr, start_ptr, y_ptr,
    y_outer, y_inner, factor_ptr, term_ptr, rows, heads, sites, chunks, span,
    WIDTH: tl.constexpr, Y_STEP: tl.constexpr, X_COMPLEX: tl.constexpr, X_UNIT: tl.constexpr, L_COMPLEX: tl.constexpr,
    CONSTANT: tl.constexpr, REDUCE: tl.constexpr, MASKED: tl.constexpr,
    T: tl.constexpr, Q: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """y (B, H, N, M) from the y before each chunk, start (R, C, M); REDUCE stores each chunk's factor and terms.

    T sites are held, each replaced by the one T sites on as soon as it is used: T loads are always on their way.
    X_UNIT: the sites of x are M numbers apart, so that addresses are constants. Without MASKED all chunks are whole
    multiples of T sites. The sites of y are Y_STEP numbers apart.
    """
    row = (tl.program_id(0) * Q + tl.arange(0, Q)[:, None]).to(tl.int64)
    column = tl.program_id(2) * W + tl.arange(0, W)[None, :]
    chunk = tl.program_id(1)
    inside = (row < rows) & (column < WIDTH)
    outer, inner = row // heads, row % heads
    first = chunk * span
    held = tl.minimum(span, sites - first)
    stride = WIDTH if X_UNIT else x_stride
    start = first.to(tl.int64)
    x = x_ptr + (outer * x_outer + inner * x_inner + column * x_column + start * stride) * (2 if X_COMPLEX else 1)
    l = l_ptr + (outer * l_outer + inner * l_inner + start * l_stride + column * 0) * (2 if L_COMPLEX else 1)
    theta = theta_ptr + (row * sites + start + column * 0) * 2
    y = y_ptr + (outer * y_outer + inner * y_inner + start * Y_STEP + column) * 2
    edge = (row * chunks + chunk) * WIDTH + column
    fr, fi = tl.full((Q, W), 1.0, tl.float32), tl.zeros((Q, W), tl.float32)
    yr, yi = tl.zeros((Q, W), tl.float32), tl.zeros((Q, W), tl.float32)
    if not REDUCE:
        yr, yi = load_pair(start_ptr + edge * 2, inside)
    lr, li = (), ()
    if CONSTANT:
        r, i = load_number(l, 0, inside, L_COMPLEX)
        lr, li = (r,), (i,)
    xr, xi, tr, ti = (), (), (), ()
    for t in tl.static_range(T):
        here = inside & (t < held) if MASKED else inside
        r, i = load_number(x, t * stride, here, X_COMPLEX)
        xr, xi = xr + (r,), xi + (i,)
        r, i = load_number(theta, t, here, True)
        tr, ti = tr + (r,), ti + (i,)
        if not CONSTANT:
            r, i = load_number(l, t * l_stride, here, L_COMPLEX)
            lr, li = lr + (r,), li + (i,)
    for k in range(0, (held + T - 1) // T):
        site = k * T
        # The last stretch loads itself again rather than what lies past the chunk.
        ahead = T if MASKED else tl.minimum(T, held - T - site)
        x_ahead = x + tl.cast(ahead, tl.int64) * stride * (2 if X_COMPLEX else 1)
        theta_ahead = theta + ahead * 2
        l_ahead = l + tl.cast(ahead, tl.int64) * l_stride * (2 if L_COMPLEX else 1)
        next_xr, next_xi, next_tr, next_ti, next_lr, next_li = (), (), (), (), (), ()
        for t in tl.static_range(T):
            # Converted when it is used: arithmetic on what is still on its way would wait for it.
            vr, vi = multiply(tr[t], ti[t], xr[t].to(tl.float32), xi[t])
            cr, ci = multiply(tr[t], ti[t], lr[0 if CONSTANT else t], li[0 if CONSTANT else t])
            vr, vi = multiply_add(-cr, -ci, yr, yi, vr, vi)
            if REDUCE:
                # Past the chunk's end nothing changes.
                gr, gi = multiply(-cr, -ci, fr, fi)
                valid = site + t < held
                fr, fi = tl.where(valid, gr, fr), tl.where(valid, gi, fi)
                yr, yi = tl.where(valid, vr, yr), tl.where(valid, vi, yi)
            else:
                yr, yi = vr, vi
                stored = inside & (site + t < held) if MASKED else inside
                store_tile(y, t * Y_STEP, stored, yr, yi, True)
            here = inside & (site + T + t < held) if MASKED else inside
            r, i = load_number(x_ahead, t * stride, here, X_COMPLEX)
            next_xr, next_xi = next_xr + (r,), next_xi + (i,)
            r, i = load_number(theta_ahead, t, here, True)
            next_tr, next_ti = next_tr + (r,), next_ti + (i,)
            if not CONSTANT:
                r, i = load_number(l_ahead, t * l_stride, here, L_COMPLEX)
                next_lr, next_li = next_lr + (r,), next_li + (i,)
        xr, xi, tr, ti = next_xr, next_xi, next_tr, next_ti
        if not CONSTANT:
            lr, li = next_lr, next_li
        x += T * stride * (2 if X_COMPLEX else 1)
        l += T * l_stride * (2 if L_COMPLEX else 1)
        theta += T * 2
        y += T * Y_STEP * 2
    if REDUCE:
        store_pair(factor_ptr + (row * chunks + chunk + column * 0) * 2, inside & (column == 0), fr, fi)
        store_pair(term_ptr + edge * 2, inside, yr, yi)


@triton.jit
def apply_backward_kernel(
    gradient_ptr, y_ptr, y_outer, y_inner, l_ptr, l_outer, l_inner, l_stride, theta_ptr, initial_ptr, start_ptr,
    dx_ptr, applied_ptr, before_ptr, dinitial_ptr, factor_ptr, term_ptr, rows, heads, sites, chunks, span,
    WIDTH: tl.constexpr, Y_STEP: tl.constexpr, X_COMPLEX: tl.constexpr, L_COMPLEX: tl.constexpr,
    CONSTANT: tl.constexpr, REDUCE: tl.constexpr,
    T: tl.constexpr, Q: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Y_i = g_i + s_{i+1}, s_i = -l_i theta_i Y_i from s after each chunk, start (R, C, M); dx_i = theta_i Y_i.

    Besides dx (B, H, N, M): applied = sum_M Y_i y_i and before = sum_M Y_i y_{i-1}, (K, R, N) for K column tiles.
    Gradient, y and dx have the same strides, Y_STEP from site to site; theta^2 tau of mathematics §1 is theta times
    `applied`, so x is not read.
    """
    row = (tl.program_id(0) * Q + tl.arange(0, Q)[:, None]).to(tl.int64)
    column = tl.program_id(2) * W + tl.arange(0, W)[None, :]
    chunk = tl.program_id(1)
    inside = (row < rows) & (column < WIDTH)
    l = l_ptr + (row // heads * l_outer + row % heads * l_inner + column * 0) * (2 if L_COMPLEX else 1)
    theta = theta_ptr + (row * sites + column * 0) * 2
    values = row // heads * y_outer + row % heads * y_inner + column
    totals = (tl.program_id(2).to(tl.int64) * rows + row) * sites
    edge = (row * chunks + chunk) * WIDTH + column
    first = chunk * span
    limit = tl.minimum(first + span, sites)
    initial_r, initial_i = load_pair(initial_ptr + (row * WIDTH + column) * 2, inside)
    fr, fi = tl.full((Q, W), 1.0, tl.float32), tl.zeros((Q, W), tl.float32)
    sr, si = tl.zeros((Q, W), tl.float32), tl.zeros((Q, W), tl.float32)
    if not REDUCE:
        sr, si = load_pair(start_ptr + edge * 2, inside)
    stretches = (limit - first + T - 1) // T
    for k in range(0, stretches):
        site = first + (stretches - 1 - k) * T
        tr, ti, cr, ci = load_steps(theta, l, l_stride, site, limit, inside, L_COMPLEX, CONSTANT, T, Q, W)
        gr, gi = load_stretch(gradient_ptr + values * 2, site, limit, Y_STEP, inside, True, T, Q, W)
        if not REDUCE:
            yr, yi = load_stretch(y_ptr + values * 2, site, limit, Y_STEP, inside, True, T, Q, W)
            zr, zi = load_stretch(y_ptr + values * 2, site - 1, limit, Y_STEP, inside, True, 1, Q, W)
            zr, zi = (tl.where(site == 0, initial_r, zr[0]),), (tl.where(site == 0, initial_i, zi[0]),)
            zr, zi = zr + yr, zi + yi
        for u in tl.static_range(T):
            now = site + (T - 1 - u)
            valid = now < limit
            # Past the row's end nothing changes: s goes through as it came.
            ur, ui = sr + gr[T - 1 - u], si - gi[T - 1 - u]
            nr, ni = multiply(cr[T - 1 - u], ci[T - 1 - u], ur, ui)
            if REDUCE:
                hr, hi = multiply(cr[T - 1 - u], ci[T - 1 - u], fr, fi)
                fr, fi = tl.where(valid, hr, fr), tl.where(valid, hi, fi)
            else:
                here = inside & valid
                vr, vi = multiply(tr[T - 1 - u], ti[T - 1 - u], ur, ui)
                dx = dx_ptr + values * (2 if X_COMPLEX else 1)
                store_tile(dx, now.to(tl.int64) * Y_STEP, here, vr, -vi, X_COMPLEX)
                store_total(applied_ptr + (totals + now) * 2, (row < rows) & valid, ur, ui, zr[T - u], zi[T - u])
                store_total(before_ptr + (totals + now) * 2, (row < rows) & valid, ur, ui, zr[T - 1 - u], zi[T - 1 - u])
            sr, si = tl.where(valid, nr, sr), tl.where(valid, ni, si)
    if REDUCE:
        store_pair(factor_ptr + (row * chunks + chunk + column * 0) * 2, inside & (column == 0), fr, fi)
        store_pair(term_ptr + edge * 2, inside, sr, si)
    elif chunk == 0:
        store_pair(dinitial_ptr + (row * WIDTH + column) * 2, inside, sr, -si)


@triton.jit
def store_total(pointer, inside, ar, ai, br, bi):
    """Store sum_M a b, one a row."""
    cr, ci = multiply(ar, ai, br, bi)
    tl.store(pointer, tl.sum(cr, axis=1, keep_dims=True), mask=inside)
    tl.store(pointer + 1, tl.sum(ci, axis=1, keep_dims=True), mask=inside)
