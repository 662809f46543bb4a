"""The causal resolvent applied to values in one pass over memory: theta, and from it the values' recurrence;
and the adjoint of that recurrence, from a row's last chunk to its first.

One program runs through a row in chunks of P lanes of E consecutive sites, and holds G columns of the values.
theta comes from a scan of matrices over the lanes, y_i = theta_i x_i - theta_i l_i y_{i-1} from a scan of linear maps.
Backward, Y_i = g_i + s_{i+1} and s_i = -l_i theta_i Y_i, with g the conjugate of the incoming gradient; s goes from
lane to lane by a scan of linear maps and from chunk to chunk in registers.
"""

import triton
import triton.language as tl

from .complex import load_complex, multiply, multiply_add
from .lane_values import load_values, scan_terms, store_values
from .moebius import act, lane_prefixes
from .sites import from_previous_lane, load_sites, row_start, store_sites
from .tridiagonal import couplings, load_coupling, load_hopping, shifted, thetas


@triton.jit
def lane_apply_kernel(
    a_ptr, a_outer, a_inner, a_stride, l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride,
    z_ptr, initial_ptr, x_ptr, x_outer, x_inner, x_stride, start_ptr, theta_ptr, y_ptr, y_outer, y_inner,
    heads, sites, chunks,
    A_COMPLEX: tl.constexpr, L_COMPLEX: tl.constexpr, U_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr,
    UNIT: tl.constexpr, X_COMPLEX: tl.constexpr, X_UNIT: tl.constexpr, X_ALIGNED: tl.constexpr, WIDTH: tl.constexpr,
    Y_STEP: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
    G: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """theta (R, N) and y (B, H, N, M) from theta and y before the row, initial (R,) and start (R, M).

    X_UNIT: the sites of x are M numbers apart. Those of y are Y_STEP numbers apart. X_ALIGNED and ALIGNED, powers of
    two, divide the strides of x and of y: without them the compiler moves numbers one by one where a head's width is
    no multiple of 16.
    """
    # Neighbouring programs share the sectors of a row: its groups of columns come one after the other.
    GROUPS: tl.constexpr = (WIDTH + G - 1) // G
    row, column = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS * G
    lane = tl.arange(0, P)
    last = lane * 0 + (P - 1)
    # theta before the chunk, the same in all lanes; y before the chunk counts in lane 0 alone.
    tr, ti = load_complex(initial_ptr + row.to(tl.int64) * 2 + lane * 0)
    yr, yi = (), ()
    for m in tl.static_range(G):
        start = start_ptr + (row.to(tl.int64) * WIDTH + column + m) * 2 + lane * 0
        yr = yr + (tl.load(start, mask=column + m < WIDTH, other=0.0),)
        yi = yi + (tl.load(start + 1, mask=column + m < WIDTH, other=0.0),)
    a = row_start(a_ptr, row, heads, a_outer, a_inner, A_COMPLEX)
    x = row_start(x_ptr, row, heads, x_outer, x_inner, X_COMPLEX, X_ALIGNED)
    stride = WIDTH if X_UNIT else x_stride
    theta = theta_ptr + row.to(tl.int64) * sites * 2
    y = row_start(y_ptr, row, heads, y_outer, y_inner, True, ALIGNED)
    for chunk in range(0, chunks):
        first = chunk * (P * E)
        ar, ai = load_sites(a, first, sites, a_stride, A_COMPLEX, UNIT, MASKED, P, E)
        xr, xi = load_values(x, first, sites, column, stride, X_COMPLEX, X_UNIT, WIDTH, MASKED, P, E, G)
        lr, li, ur, ui = load_hopping(
            l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride, row, heads, first, sites,
            L_COMPLEX, U_COMPLEX, CONSTANT, UNIT, MASKED, P, E,
        )  # fmt: skip
        dr, di = shifted(ar, ai, z_ptr, row, E)
        pr, pi = couplings(lr, li, ur, ui, first, sites, MASKED, P, E)
        er, ei = act(lane_prefixes(dr, di, pr, pi, E), tr, ti)
        sr, si = from_previous_lane(er, tr, P), from_previous_lane(ei, ti, P)
        tr, ti = tl.gather(er, last, axis=0), tl.gather(ei, last, axis=0)
        theta_r, theta_i = thetas(dr, di, pr, pi, sr, si, E)
        if column == 0:
            store_sites(theta, first, sites, theta_r, theta_i, True, MASKED, P, E)
        # y_i = c_i y_{i-1} + v_i.
        cr, ci = factors(theta_r, theta_i, lr, li, E)
        vr, vi = (), ()
        for j in tl.static_range(E * G):
            r, i = multiply(theta_r[j // G], theta_i[j // G], xr[j].to(tl.float32), xi[j])
            vr, vi = vr + (r,), vi + (i,)
        r, i, yr, yi = scan_values(cr, ci, vr, vi, yr, yi, P, E, G)
        store_values(y, first, sites, column, Y_STEP, r, i, True, WIDTH, MASKED, P, E, G, PIECE)


@triton.jit
def factors(theta_r, theta_i, lr, li, E: tl.constexpr):
    """c = -l theta site by site."""
    cr, ci = (), ()
    for e in tl.static_range(E):
        r, i = multiply(theta_r[e], theta_i[e], lr[e], li[e])
        cr, ci = cr + (-r,), ci + (-i,)
    return cr, ci


@triton.jit
def lagged(
    edge, yr, yi, column, WIDTH: tl.constexpr, P: tl.constexpr, E: tl.constexpr, G: tl.constexpr
):  # fmt: skip
    """y of the site before each of a lane's sites, and behind them that of its last one; `edge` points to y before the
    chunk."""
    lag_r, lag_i = (), ()
    for m in tl.static_range(G):
        r = tl.load(edge + m * 2, mask=column + m < WIDTH, other=0.0)
        i = tl.load(edge + m * 2 + 1, mask=column + m < WIDTH, other=0.0)
        lag_r = lag_r + (from_previous_lane(yr[(E - 1) * G + m], r, P),)
        lag_i = lag_i + (from_previous_lane(yi[(E - 1) * G + m], i, P),)
    return lag_r + yr, lag_i + yi


@triton.jit
def scan_values(cr, ci, vr, vi, yr, yi, P: tl.constexpr, E: tl.constexpr, G: tl.constexpr):
    """y_i = c_i y_{i-1} + v_i at all lanes' sites, E G numbers each, and y after them, from y before them.

    The last two are G numbers, and lane 0 alone has them right.
    """
    lane = tl.arange(0, P)
    previous = (lane + (P - 1)) % P
    # Each lane's map y -> f y + b from its first site to its last; that of lane 0 starts from the y before it.
    fr, fi = cr[0], ci[0]
    for e in tl.static_range(1, E):
        fr, fi = multiply(cr[e], ci[e], fr, fi)
    br, bi = (), ()
    for m in tl.static_range(G):
        r, i = vr[m], vi[m]
        for e in tl.static_range(1, E):
            r, i = multiply_add(cr[e], ci[e], r, i, vr[e * G + m], vi[e * G + m])
        zr, zi = multiply_add(fr, fi, yr[m], yi[m], r, i)
        br, bi = br + (tl.where(lane == 0, zr, r),), bi + (tl.where(lane == 0, zi, i),)
    br, bi = scan_terms(fr, fi, br, bi, 0, G, False)
    # One exchange brings each lane the y before it, and lane 0 the last one's.
    ends_r, ends_i, zr, zi = (), (), (), ()
    for m in tl.static_range(G):
        r, i = tl.gather(br[m], previous, axis=0), tl.gather(bi[m], previous, axis=0)
        ends_r, ends_i = ends_r + (r,), ends_i + (i,)
        zr, zi = zr + (tl.where(lane == 0, yr[m], r),), zi + (tl.where(lane == 0, yi[m], i),)
    result_r, result_i = (), ()
    for j in tl.static_range(E * G):
        r, i = multiply_add(cr[j // G], ci[j // G], zr[j], zi[j], vr[j], vi[j])
        zr, zi = zr + (r,), zi + (i,)
        result_r, result_i = result_r + (r,), result_i + (i,)
    return result_r, result_i, ends_r, ends_i


@triton.jit
def lane_apply_backward_kernel(
    gradient_ptr, y_ptr, y_outer, y_inner, l_ptr, l_outer, l_inner, l_stride, theta_ptr, initial_ptr, dx_ptr,
    applied_ptr, before_ptr, dinitial_ptr, rows, heads, sites, chunks,
    X_COMPLEX: tl.constexpr, L_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr, HOPPING: tl.constexpr,
    UNIT: tl.constexpr, WIDTH: tl.constexpr, Y_STEP: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr,
    P: tl.constexpr, E: tl.constexpr, G: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """dx_i = theta_i Y_i (B, H, N, M) and applied = sum_M Y_i y_i, (K, R, N) for K groups of columns.

    HOPPING: before = sum_M Y_i y_{i-1} alike, or where l is CONSTANT its sum with theta over the row, (K, R).
    Gradient, y and dx have the same strides, multiples of ALIGNED, Y_STEP from site to site; y before the row is
    initial (R, M). theta^2 tau of mathematics §1 is theta times `applied`, so x is not read.
    """
    GROUPS: tl.constexpr = (WIDTH + G - 1) // G
    row, group = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS
    column = group * G
    lane = tl.arange(0, P)
    base = row.to(tl.int64) * sites
    y = row_start(y_ptr, row, heads, y_outer, y_inner, True, ALIGNED)
    gradient = row_start(gradient_ptr, row, heads, y_outer, y_inner, True, ALIGNED)
    dx = row_start(dx_ptr, row, heads, y_outer, y_inner, X_COMPLEX, ALIGNED)
    total = group.to(tl.int64) * rows + row
    edge = (row.to(tl.int64) * WIDTH + column) * 2
    # s after the chunk, in the last lane.
    after_r, after_i = (), ()
    for _ in tl.static_range(G):
        after_r, after_i = after_r + (tl.zeros((P,), tl.float32),), after_i + (tl.zeros((P,), tl.float32),)
    sum_r, sum_i = tl.zeros((P,), tl.float32), tl.zeros((P,), tl.float32)
    for k in range(0, chunks):
        chunk = chunks - 1 - k
        first = chunk * (P * E)
        theta_r, theta_i = load_sites(theta_ptr + base * 2, first, sites, 1, True, True, MASKED, P, E)
        gr, gi = load_values(gradient, first, sites, column, Y_STEP, True, Y_STEP == WIDTH, WIDTH, MASKED, P, E, G)
        yr, yi = load_values(y, first, sites, column, Y_STEP, True, Y_STEP == WIDTH, WIDTH, MASKED, P, E, G)
        lr, li = load_coupling(
            l_ptr, l_outer, l_inner, l_stride, row, heads, first, sites, L_COMPLEX, CONSTANT, UNIT, MASKED, P, E
        )
        cr, ci = factors(theta_r, theta_i, lr, li, E)
        sr, si, after_r, after_i = scan_adjoint(cr, ci, gr, gi, after_r, after_i, P, E, G)
        if HOPPING:
            # y before the chunk, for its first site.
            edge_of_y = y + ((first.to(tl.int64) - 1) * Y_STEP + column) * 2 if chunk > 0 else initial_ptr + edge
            lag_r, lag_i = lagged(edge_of_y, yr, yi, column, WIDTH, P, E, G)
        dx_r, dx_i, applied_r, applied_i, before_r, before_i = (), (), (), (), (), ()
        for e in tl.static_range(E - 1, -1, -1):
            ur, ui, next_sr, next_si = (), (), (), ()
            ar, ai = tl.zeros((P,), tl.float32), tl.zeros((P,), tl.float32)
            hr, hi = ar, ai
            for m in tl.static_range(G):
                zr, zi = gr[e * G + m] + sr[m], si[m] - gi[e * G + m]
                ar, ai = multiply_add(zr, zi, yr[e * G + m], yi[e * G + m], ar, ai)
                if HOPPING:
                    hr, hi = multiply_add(zr, zi, lag_r[e * G + m], lag_i[e * G + m], hr, hi)
                r, i = multiply(theta_r[e], theta_i[e], zr, zi)
                ur, ui = ur + (r,), ui + (-i,)
                r, i = multiply(cr[e], ci[e], zr, zi)
                next_sr, next_si = next_sr + (r,), next_si + (i,)
            sr, si = next_sr, next_si
            dx_r, dx_i = ur + dx_r, ui + dx_i
            applied_r, applied_i = (ar,) + applied_r, (ai,) + applied_i
            if CONSTANT:
                sum_r, sum_i = multiply_add(theta_r[e], theta_i[e], hr, hi, sum_r, sum_i)
            else:
                before_r, before_i = (hr,) + before_r, (hi,) + before_i
        store_values(dx, first, sites, column, Y_STEP, dx_r, dx_i, X_COMPLEX, WIDTH, MASKED, P, E, G, PIECE)
        store_sites(applied_ptr + total * sites * 2, first, sites, applied_r, applied_i, True, MASKED, P, E)
        if HOPPING and not CONSTANT:
            store_sites(before_ptr + total * sites * 2, first, sites, before_r, before_i, True, MASKED, P, E)
    if HOPPING and CONSTANT:
        tl.store(before_ptr + total * 2, tl.sum(sum_r, axis=0))
        tl.store(before_ptr + total * 2 + 1, tl.sum(sum_i, axis=0))
    for m in tl.static_range(G):
        inside = (lane == P - 1) & (column + m < WIDTH)
        tl.store(dinitial_ptr + edge + m * 2 + lane * 0, after_r[m], mask=inside)
        tl.store(dinitial_ptr + edge + m * 2 + 1 + lane * 0, -after_i[m], mask=inside)


@triton.jit
def scan_adjoint(cr, ci, gr, gi, after_r, after_i, P: tl.constexpr, E: tl.constexpr, G: tl.constexpr):
    """s after each lane, from s after the chunk; and s before the chunk. G numbers each, of which the last lane alone
    has the latter right, as it does s after the chunk."""
    lane = tl.arange(0, P)
    following = (lane + 1) % P
    # Each lane's map s -> f s + b from its last site to its first; that of the last lane starts from s after it.
    fr, fi = cr[0], ci[0]
    for e in tl.static_range(1, E):
        fr, fi = multiply(cr[e], ci[e], fr, fi)
    br, bi = (), ()
    for m in tl.static_range(G):
        r, i = multiply(cr[E - 1], ci[E - 1], gr[(E - 1) * G + m], -gi[(E - 1) * G + m])
        for e in tl.static_range(E - 2, -1, -1):
            r, i = multiply(cr[e], ci[e], gr[e * G + m] + r, i - gi[e * G + m])
        zr, zi = multiply_add(fr, fi, after_r[m], after_i[m], r, i)
        br, bi = br + (tl.where(lane == P - 1, zr, r),), bi + (tl.where(lane == P - 1, zi, i),)
    br, bi = scan_terms(fr, fi, br, bi, 0, G, True)
    # One exchange brings each lane the s after it, and the last lane the first one's.
    ends_r, ends_i, sr, si = (), (), (), ()
    for m in tl.static_range(G):
        r, i = tl.gather(br[m], following, axis=0), tl.gather(bi[m], following, axis=0)
        ends_r, ends_i = ends_r + (r,), ends_i + (i,)
        sr = sr + (tl.where(lane == P - 1, after_r[m], r),)
        si = si + (tl.where(lane == P - 1, after_i[m], i),)
    return sr, si, ends_r, ends_i
