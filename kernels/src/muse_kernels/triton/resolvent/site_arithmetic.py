"""Arithmetic on lanes of sites: tuples of E tensors (P,), one for each of a lane's sites."""

import triton
import triton.language as tl

from .complex import multiply
from .sites import store_sites


@triton.jit
def multiply_sites(ar, ai, br, bi, E: tl.constexpr):
    """a b site by site."""
    cr, ci = (), ()
    for e in tl.static_range(E):
        r, i = multiply(ar[e], ai[e], br[e], bi[e])
        cr = cr + (r,)
        ci = ci + (i,)
    return cr, ci


@triton.jit
def add_sites(ar, ai, br, bi, E: tl.constexpr):
    """a + b site by site."""
    cr, ci = (), ()
    for e in tl.static_range(E):
        cr = cr + (ar[e] + br[e],)
        ci = ci + (ai[e] + bi[e],)
    return cr, ci


@triton.jit
def subtract_sites(ar, ai, br, bi, E: tl.constexpr):
    """a - b site by site."""
    return add_sites(ar, ai, negated(br, E), negated(bi, E), E)


@triton.jit
def negated(xs, E: tl.constexpr):
    """-x site by site."""
    ys = ()
    for e in tl.static_range(E):
        ys = ys + (-xs[e],)
    return ys


@triton.jit
def store_conjugate(
    pointer, row, first, sites, real, imag, COMPLEX: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr,
    E: tl.constexpr,
):  # fmt: skip
    """Store conj(x) into a contiguous (R, N) tensor; its real part where that is real."""
    base = row.to(tl.int64) * sites * (2 if COMPLEX else 1)
    store_sites(pointer + base, first, sites, real, negated(imag, E), COMPLEX, MASKED, P, E)


@triton.jit
def store_sum(pointer, real, imag, E: tl.constexpr):
    """Store conj(sum of all sites) at one address."""
    sr, si = real[0], imag[0]
    for e in tl.static_range(1, E):
        sr += real[e]
        si += imag[e]
    tl.store(pointer, tl.sum(sr, axis=0))
    tl.store(pointer + 1, -tl.sum(si, axis=0))
