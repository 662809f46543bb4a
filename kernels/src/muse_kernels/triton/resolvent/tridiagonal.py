"""The shifted diagonal d = a - z, the couplings p = l u and theta of a row, as lanes of sites."""

import triton
import triton.language as tl

from .complex import load_complex, multiply, reciprocal, subtract_product
from .sites import load_sites, repeat, row_start


@triton.jit
def load_tridiagonal(
    a_ptr, a_outer, a_inner, a_stride, l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride,
    z_ptr, row, heads, first, sites, A_COMPLEX: tl.constexpr, L_COMPLEX: tl.constexpr, U_COMPLEX: tl.constexpr,
    CONSTANT: tl.constexpr, UNIT: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """E values of d = a - z and of p = l u each lane."""
    a = row_start(a_ptr, row, heads, a_outer, a_inner, A_COMPLEX)
    ar, ai = load_sites(a, first, sites, a_stride, A_COMPLEX, UNIT, MASKED, P, E)
    dr, di = shifted(ar, ai, z_ptr, row, E)
    pr, pi = load_couplings(
        l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride, row, heads, first, sites,
        L_COMPLEX, U_COMPLEX, CONSTANT, UNIT, MASKED, P, E,
    )  # fmt: skip
    return dr, di, pr, pi


@triton.jit
def load_couplings(
    l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride, row, heads, first, sites,
    L_COMPLEX: tl.constexpr, U_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr, UNIT: tl.constexpr, MASKED: tl.constexpr,
    P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """E values of p = l u each lane."""
    lr, li, ur, ui = load_hopping(
        l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride, row, heads, first, sites,
        L_COMPLEX, U_COMPLEX, CONSTANT, UNIT, MASKED, P, E,
    )  # fmt: skip
    return couplings(lr, li, ur, ui, first, sites, MASKED, P, E)


@triton.jit
def shifted(ar, ai, z_ptr, row, E: tl.constexpr):
    """d = a - z site by site."""
    zr, zi = load_complex(z_ptr + row.to(tl.int64) * 2)
    dr, di = (), ()
    for e in tl.static_range(E):
        dr = dr + (ar[e] - zr,)
        di = di + (ai[e] - zi,)
    return dr, di


@triton.jit
def load_hopping(
    l_ptr, l_outer, l_inner, l_stride, u_ptr, u_outer, u_inner, u_stride, row, heads, first, sites,
    L_COMPLEX: tl.constexpr, U_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr, UNIT: tl.constexpr, MASKED: tl.constexpr,
    P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """E values of l and of u each lane; CONSTANT along the row, they are one complex number, (R,) contiguous."""
    lr, li = load_coupling(
        l_ptr, l_outer, l_inner, l_stride, row, heads, first, sites, L_COMPLEX, CONSTANT, UNIT, MASKED, P, E
    )
    ur, ui = load_coupling(
        u_ptr, u_outer, u_inner, u_stride, row, heads, first, sites, U_COMPLEX, CONSTANT, UNIT, MASKED, P, E
    )
    return lr, li, ur, ui


@triton.jit
def load_coupling(
    pointer, outer, inner, stride, row, heads, first, sites, COMPLEX: tl.constexpr, CONSTANT: tl.constexpr,
    UNIT: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """E values of l, or of u, each lane; CONSTANT along the row, they are one complex number, (R,) contiguous."""
    if CONSTANT:
        real, imag = load_complex(pointer + row.to(tl.int64) * 2)
        return repeat(real, E), repeat(imag, E)
    else:
        start = row_start(pointer, row, heads, outer, inner, COMPLEX)
        return load_sites(start, first, sites, stride, COMPLEX, UNIT, MASKED, P, E)


@triton.jit
def couplings(lr, li, ur, ui, first, sites, MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr):
    """E values of p = l u each lane; MASKED, those past the row's end are zero."""
    pr, pi = (), ()
    for e in tl.static_range(E):
        r, i = multiply(lr[e], li[e], ur[e], ui[e])
        if MASKED:
            inside = first + tl.arange(0, P) * E + e < sites
            r, i = tl.where(inside, r, 0.0), tl.where(inside, i, 0.0)
        pr = pr + (r,)
        pi = pi + (i,)
    return pr, pi


@triton.jit
def thetas(dr, di, pr, pi, tr, ti, E: tl.constexpr):
    """theta of each lane's E sites, from the one before them."""
    theta_r, theta_i = (), ()
    for e in tl.static_range(E):
        cr, ci = subtract_product(dr[e], di[e], pr[e], pi[e], tr, ti)
        tr, ti = reciprocal(cr, ci)
        theta_r = theta_r + (tr,)
        theta_i = theta_i + (ti,)
    return theta_r, theta_i
