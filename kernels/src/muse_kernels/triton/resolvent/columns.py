"""Stretches of T sites as T tiles (Q, W): Q rows of the batch by W columns of the values, one number a thread."""

import triton
import triton.language as tl

from .complex import multiply


@triton.jit
def load_stretch(
    pointer, site, limit, site_stride, inside, COMPLEX: tl.constexpr, T: tl.constexpr, Q: tl.constexpr, W: tl.constexpr
):  # fmt: skip
    """T tiles (real parts, imaginary parts) from `site` on, zero from `limit` on and before zero.

    `pointer` (Q, W) points to site 0; strides in elements of the tensor.
    """
    real, imag = (), ()
    part = tl.arange(0, 2)[None, None, :]
    for t in tl.static_range(T):
        here = inside & (site + t < limit) & (site + t >= 0)
        offset = (site + t).to(tl.int64) * site_stride
        if COMPLEX:
            x = tl.load((pointer + offset * 2)[:, :, None] + part, mask=here[:, :, None] & (part < 2), other=0.0)
            r, i = tl.split(x)
        else:
            r = tl.load(pointer + offset, mask=here, other=0.0)
            i = tl.zeros((Q, W), tl.float32)
        real, imag = real + (r,), imag + (i,)
    return real, imag


@triton.jit
def load_number(pointer, offset, inside, COMPLEX: tl.constexpr):
    """The tile at `offset` elements of the tensor after `pointer` (Q, W), in its precision; outside, any number."""
    if COMPLEX:
        part = tl.arange(0, 2)[None, None, :]
        return tl.split(tl.load((pointer + offset * 2)[:, :, None] + part, mask=inside[:, :, None] & (part < 2)))
    else:
        real = tl.load(pointer + offset, mask=inside)
        return real, tl.zeros(real.shape, tl.float32)


@triton.jit
def load_steps(
    theta, l, l_stride, site, limit, inside, L_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr, T: tl.constexpr,
    Q: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """T tiles of theta and of -l theta, the same for every column."""
    tr, ti = load_stretch(theta, site, limit, 1, inside, True, T, Q, W)
    if CONSTANT:
        lr, li = load_stretch(l, site * 0, limit, l_stride, inside, L_COMPLEX, 1, Q, W)
    else:
        lr, li = load_stretch(l, site, limit, l_stride, inside, L_COMPLEX, T, Q, W)
    cr, ci = (), ()
    for t in tl.static_range(T):
        r, i = multiply(tr[t], ti[t], lr[0 if CONSTANT else t], li[0 if CONSTANT else t])
        cr, ci = cr + (-r,), ci + (-i,)
    return tr, ti, cr, ci


@triton.jit
def store_tile(pointer, offset, inside, real, imag, COMPLEX: tl.constexpr):
    """Store a tile at `offset` elements of the tensor after `pointer` (Q, W)."""
    if COMPLEX:
        part = tl.arange(0, 2)[None, None, :]
        address = (pointer + offset * 2)[:, :, None] + part
        tl.store(address, tl.join(real, imag), mask=inside[:, :, None] & (part < 2))
    else:
        tl.store(pointer + offset, real, mask=inside)


@triton.jit
def load_pair(pointer, inside):
    """The complex tile at `pointer`, zero outside."""
    return tl.load(pointer, mask=inside, other=0.0), tl.load(pointer + 1, mask=inside, other=0.0)


@triton.jit
def store_pair(pointer, inside, real, imag):
    """Store a complex tile at `pointer`."""
    tl.store(pointer, real, mask=inside)
    tl.store(pointer + 1, imag, mask=inside)
