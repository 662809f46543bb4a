"""Complex arithmetic on pairs of real tensors, and linear recurrences over them."""

import triton
import triton.language as tl


@triton.jit
def multiply(ar, ai, br, bi):
    """a b."""
    return tl.fma(ar, br, -(ai * bi)), tl.fma(ar, bi, ai * br)


@triton.jit
def multiply_add(ar, ai, br, bi, cr, ci):
    """a b + c."""
    return tl.fma(ar, br, tl.fma(-ai, bi, cr)), tl.fma(ar, bi, tl.fma(ai, br, ci))


@triton.jit
def subtract_product(cr, ci, ar, ai, br, bi):
    """c - a b."""
    return tl.fma(-ar, br, tl.fma(ai, bi, cr)), tl.fma(-ar, bi, tl.fma(-ai, br, ci))


@triton.jit
def reciprocal(ar, ai):
    """1 / a."""
    scale = 1.0 / tl.fma(ar, ar, ai * ai)
    return ar * scale, -ai * scale


@triton.jit
def then_linear(ar, ai, br, bi, cr, ci, dr, di):
    """The map x -> a x + b followed by x -> c x + d, as (factor, term): associative."""
    fr, fi = multiply(cr, ci, ar, ai)
    tr, ti = multiply_add(cr, ci, br, bi, dr, di)
    return fr, fi, tr, ti


@triton.jit
def then_two(ar, ai, b0r, b0i, b1r, b1i, cr, ci, d0r, d0i, d1r, d1i):
    """Two maps x -> a x + b of one factor followed by two x -> c x + d: associative."""
    fr, fi = multiply(cr, ci, ar, ai)
    t0r, t0i = multiply_add(cr, ci, b0r, b0i, d0r, d0i)
    t1r, t1i = multiply_add(cr, ci, b1r, b1i, d1r, d1i)
    return fr, fi, t0r, t0i, t1r, t1i


@triton.jit
def then_three(ar, ai, b0r, b0i, b1r, b1i, b2r, b2i, cr, ci, d0r, d0i, d1r, d1i, d2r, d2i):
    """Three maps x -> a x + b of one factor followed by three x -> c x + d: associative."""
    fr, fi = multiply(cr, ci, ar, ai)
    t0r, t0i = multiply_add(cr, ci, b0r, b0i, d0r, d0i)
    t1r, t1i = multiply_add(cr, ci, b1r, b1i, d1r, d1i)
    t2r, t2i = multiply_add(cr, ci, b2r, b2i, d2r, d2i)
    return fr, fi, t0r, t0i, t1r, t1i, t2r, t2i


@triton.jit
def load_complex(pointer):
    """The complex number at a pointer to its real part."""
    return tl.load(pointer), tl.load(pointer + 1)


@triton.jit
def store_last(pointer, x, P: tl.constexpr):
    """Store the last lane's x at one address."""
    lane = tl.arange(0, P)
    tl.store(pointer + lane * 0, x, mask=lane == P - 1)


@triton.jit
def store_first(pointer, x, P: tl.constexpr):
    """Store the first lane's x at one address."""
    lane = tl.arange(0, P)
    tl.store(pointer + lane * 0, x, mask=lane == 0)
