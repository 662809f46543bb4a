"""The causal resolvent applied to values in one pass over memory: theta, and from it the values' recurrence.

One program runs through a row in chunks of P lanes of E consecutive sites, and holds G columns of the values.
theta comes from a scan of matrices over the lanes, y_i = theta_i x_i - theta_i l_i y_{i-1} from a scan of linear maps.
"""

import triton
import triton.language as tl

from .complex import load_complex, multiply, multiply_add
from .lane_values import load_values, scan_terms, store_values
from .moebius import act, lane_prefixes
from .sites import from_previous_lane, load_sites, row_start, store_sites
from .tridiagonal import couplings, load_hopping, shifted, thetas


@triton.jit
def lane_apply_kernel(
    a_ptr, a_outer, a_inner, a_stride, l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride,
    z_ptr, initial_ptr, x_ptr, x_outer, x_inner, x_stride, start_ptr, theta_ptr, y_ptr, y_outer, y_inner,
    heads, sites, chunks,
    A_COMPLEX: tl.constexpr, L_COMPLEX: tl.constexpr, U_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr,
    UNIT: tl.constexpr, X_COMPLEX: tl.constexpr, X_UNIT: tl.constexpr, WIDTH: tl.constexpr, Y_STEP: tl.constexpr,
    MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr, G: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """theta (R, N) and y (B, H, N, M) from theta and y before the row, initial (R,) and start (R, M).

    X_UNIT: the sites of x are M numbers apart. Those of y are Y_STEP numbers apart.
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
    x = row_start(x_ptr, row, heads, x_outer, x_inner, X_COMPLEX)
    stride = WIDTH if X_UNIT else x_stride
    theta = theta_ptr + row.to(tl.int64) * sites * 2
    y = row_start(y_ptr, row, heads, y_outer, y_inner, True)
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
        cr, ci = (), ()
        for e in tl.static_range(E):
            r, i = multiply(theta_r[e], theta_i[e], lr[e], li[e])
            cr, ci = cr + (-r,), ci + (-i,)
        vr, vi = (), ()
        for j in tl.static_range(E * G):
            r, i = multiply(theta_r[j // G], theta_i[j // G], xr[j].to(tl.float32), xi[j])
            vr, vi = vr + (r,), vi + (i,)
        r, i, yr, yi = run_values(cr, ci, vr, vi, yr, yi, P, E, G)
        store_values(y, first, sites, column, Y_STEP, r, i, True, WIDTH, MASKED, P, E, G, PIECE)


@triton.jit
def run_values(cr, ci, vr, vi, yr, yi, P: tl.constexpr, E: tl.constexpr, G: tl.constexpr):
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
