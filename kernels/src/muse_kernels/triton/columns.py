"""Sites as tiles (P, W): P lanes of consecutive sites, W columns of the values; one tile for each site of a lane."""

import triton
import triton.language as tl

from .complex import load_complex, multiply


@triton.jit
def load_column(
    pointer, site, sites, width, column, site_stride, column_stride, COMPLEX: tl.constexpr, P: tl.constexpr,
    W: tl.constexpr,
):  # fmt: skip
    """x (P, W) at each lane's site of a (N, M) row, (real, imaginary), zero outside; strides in its elements."""
    inside = (site >= 0) & (site < sites) & (column < width)
    at = site.to(tl.int64) * site_stride + column * column_stride
    if COMPLEX:
        part = tl.arange(0, 2)[None, None, :]
        x = tl.load(pointer + (at[:, :, None] * 2 + part), mask=inside[:, :, None] & (part < 2), other=0.0)
        real, imag = tl.split(x)
    else:
        real = tl.load(pointer + at, mask=inside, other=0.0)
        imag = tl.zeros((P, W), tl.float32)
    return real, imag


@triton.jit
def load_step(
    theta_ptr, l_ptr, l_stride, site, sites, L_COMPLEX: tl.constexpr, CONSTANT: tl.constexpr, P: tl.constexpr,
    W: tl.constexpr,
):  # fmt: skip
    """theta and -l theta at each lane's site, the same for every column; CONSTANT l is one number at l_ptr."""
    column = tl.zeros((1, W), tl.int32)
    tr, ti = load_column(theta_ptr, site, sites, 1, column, 1, 0, True, P, W)
    if CONSTANT:
        lr, li = load_complex(l_ptr)
    else:
        lr, li = load_column(l_ptr, site, sites, 1, column, l_stride, 0, L_COMPLEX, P, W)
    cr, ci = multiply(tr, ti, lr, li)
    return tr, ti, -cr, -ci


@triton.jit
def store_column(
    pointer, site, sites, width, column, real, imag, COMPLEX: tl.constexpr, P: tl.constexpr, W: tl.constexpr
):  # fmt: skip
    """The inverse of `load_column` into a contiguous (N, M) row; the real part where the row is real."""
    inside = (site < sites) & (column < width)
    at = site.to(tl.int64) * width + column
    if COMPLEX:
        part = tl.arange(0, 2)[None, None, :]
        tl.store(pointer + (at[:, :, None] * 2 + part), tl.join(real, imag), mask=inside[:, :, None] & (part < 2))
    else:
        tl.store(pointer + at, real, mask=inside)


@triton.jit
def load_edge(pointer, at, width, column):
    """The complex (1, W) at index `at` of a contiguous (..., M) tensor."""
    address = pointer + (at * width + column) * 2
    inside = column < width
    return tl.load(address, mask=inside, other=0.0), tl.load(address + 1, mask=inside, other=0.0)


@triton.jit
def store_edge(pointer, at, width, column, real, imag, LANE: tl.constexpr, P: tl.constexpr):
    """Store one lane's (1, W) at index `at` of a contiguous (..., M) tensor."""
    lane = tl.arange(0, P)[:, None]
    address = pointer + (at * width + column) * 2 + lane * 0
    inside = (lane == LANE) & (column < width)
    tl.store(address, real, mask=inside)
    tl.store(address + 1, imag, mask=inside)


@triton.jit
def from_previous_lane(x, first, P: tl.constexpr, W: tl.constexpr):
    """x (P, W) of lane j - 1; lane 0 gets `first` (1, W)."""
    lane = tl.arange(0, P)[:, None]
    source = tl.maximum(lane - 1, 0) + tl.zeros((P, W), tl.int32)
    return tl.where(lane == 0, first, tl.gather(x, source, axis=0))


@triton.jit
def from_next_lane(x, last, P: tl.constexpr, W: tl.constexpr):
    """x (P, W) of lane j + 1; the last lane gets `last` (1, W)."""
    lane = tl.arange(0, P)[:, None]
    source = tl.minimum(lane + 1, P - 1) + tl.zeros((P, W), tl.int32)
    return tl.where(lane == P - 1, last, tl.gather(x, source, axis=0))
