"""Rows of numbers as lanes of E consecutive sites each, held in registers.

Each of a lane's E sites is a tensor (P,) of its own, so that a serial recurrence over the sites of a lane is plain
arithmetic. Complex numbers are pairs (real, imaginary) of tuples.
Suffix legend: P lanes, E sites a lane.
"""

import triton
import triton.language as tl


@triton.jit
def join_sites(xs, FIRST: tl.constexpr, P: tl.constexpr, E: tl.constexpr):
    """E tensors (P,), from xs[FIRST] on -> (P, E)."""
    if E == 1:
        return tl.reshape(xs[FIRST], (P, 1))
    else:
        early = join_sites(xs, FIRST, P, E // 2)
        late = join_sites(xs, FIRST + E // 2, P, E // 2)
        return tl.reshape(tl.permute(tl.join(early, late), (0, 2, 1)), (P, E))


@triton.jit
def unpack(x, COMPLEX: tl.constexpr, NUMBERS: tl.constexpr, P: tl.constexpr):
    """The 1, 2 or 4 neighbouring numbers (at most 2 complex ones) of each lane's load, a tensor (P,) each.

    x is (P, NUMBERS), twice as wide where complex; the imaginary parts of real numbers are scalar zeros.
    """
    FLOATS: tl.constexpr = NUMBERS * (2 if COMPLEX else 1)
    if FLOATS == 4:
        even, odd = tl.split(tl.reshape(x, (P, 2, 2)))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        if COMPLEX:
            return (x0, x2), (x1, x3)
        else:
            return (x0, x1, x2, x3), (0.0, 0.0, 0.0, 0.0)
    elif FLOATS == 2:
        x0, x1 = tl.split(x)
        if COMPLEX:
            return (x0,), (x1,)
        else:
            return (x0, x1), (0.0, 0.0)
    else:
        return (tl.reshape(x, (P,)),), (0.0,)


@triton.jit
def repeat(x, E: tl.constexpr):
    """The same value for each of E sites."""
    if E == 1:
        return (x,)
    else:
        return repeat(x, E // 2) + repeat(x, E // 2)


@triton.jit
def row_start(pointer, row, heads, outer, inner, COMPLEX: tl.constexpr, ALIGNED: tl.constexpr = 1):
    """Address of a row of a (B, H, N) tensor whose strides over B and H are `outer` and `inner`, in its elements; both
    are multiples of ALIGNED, a power of two. One says nothing: the compiler keeps what it knows."""
    start = (row // heads).to(tl.int64) * outer + (row % heads).to(tl.int64) * inner
    if ALIGNED > 1:
        start = tl.multiple_of(start, ALIGNED)
    return pointer + (start * 2 if COMPLEX else start)


@triton.jit
def load_sites(
    pointer, first, sites, stride, COMPLEX: tl.constexpr, UNIT: tl.constexpr, MASKED: tl.constexpr,
    P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Sites first..first+PE of a row as (E real parts, E imaginary parts), zero past the row's end.

    `stride` is in elements of the tensor, UNIT says that it is one; the imaginary parts of a real row are scalar zeros.
    Without MASKED the row is taken to have them all, and the loads are as wide as they can be.
    """
    real, imag = (), ()
    # Each lane reads its own sites 16 bytes at a time; neighbouring reads of a cache line follow at once and hit it.
    # The alternative, contiguous reads moved to their lanes through shared memory, costs a barrier for every two sites.
    PER_LOAD: tl.constexpr = 2 if COMPLEX or E == 2 else 4
    lane = tl.arange(0, P)[:, None] * E
    part = tl.arange(0, PER_LOAD * (2 if COMPLEX else 1))[None, :]
    for k in tl.static_range(E // PER_LOAD):
        at = first + lane + (k * PER_LOAD + (part // 2 if COMPLEX else part))
        # Written apart, so that the compiler sees contiguous addresses.
        if UNIT:
            floats = (first.to(tl.int64) + k * PER_LOAD) * (2 if COMPLEX else 1)
            address = pointer + floats + (lane * (2 if COMPLEX else 1) + part)
        elif COMPLEX:
            address = pointer + (at.to(tl.int64) * stride * 2 + part % 2)
        else:
            address = pointer + at.to(tl.int64) * stride
        x = tl.load(address, mask=at < sites, other=0.0) if MASKED else tl.load(address)
        r, i = unpack(x, COMPLEX, PER_LOAD, P)
        real, imag = real + r, imag + i
    return real, imag


@triton.jit
def store_sites(
    pointer, first, sites, real, imag, COMPLEX: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr
):  # fmt: skip
    """The inverse of `load_sites` into a contiguous row."""
    offsets = tl.arange(0, P * E * 2 if COMPLEX else P * E)
    if COMPLEX:
        x = tl.reshape(tl.join(join_sites(real, 0, P, E), join_sites(imag, 0, P, E)), (P * E * 2,))
        address = pointer + first.to(tl.int64) * 2 + offsets
        inside = first + offsets // 2 < sites
    else:
        x = tl.reshape(join_sites(real, 0, P, E), (P * E,))
        address = pointer + first.to(tl.int64) + offsets
        inside = first + offsets < sites
    if MASKED:
        tl.store(address, x, mask=inside)
    else:
        tl.store(address, x)


@triton.jit
def from_previous_lane(x, first, P: tl.constexpr):
    """x of lane j - 1; lane 0 gets `first`."""
    lane = tl.arange(0, P)
    return tl.where(lane == 0, first, tl.gather(x, tl.maximum(lane - 1, 0), axis=0))


@triton.jit
def from_next_lane(x, last, P: tl.constexpr):
    """x of lane j + 1; the last lane gets `last`."""
    lane = tl.arange(0, P)
    return tl.where(lane == P - 1, last, tl.gather(x, tl.minimum(lane + 1, P - 1), axis=0))
