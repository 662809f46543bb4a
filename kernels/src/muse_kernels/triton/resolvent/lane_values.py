"""The values of a row as lanes of sites: a lane holds G columns of each of its E sites, site by site, in registers.

Number e G + m of a lane is column m of its site e, a tensor (P,) each. Columns are neighbours in memory.
"""

import triton
import triton.language as tl

from .complex import then_linear, then_three, then_two
from .sites import join_sites, unpack


@triton.jit
def load_values(
    pointer, first, sites, column, stride, COMPLEX: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr,
    MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """E G numbers each lane, G columns from `column` on; zero past the row's end and past the width.

    Sites are `stride` numbers apart; UNIT says that this is the width. Real values are in the precision of memory, and
    their imaginary parts zeros.
    """
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    FLAT: tl.constexpr = UNIT and G == WIDTH
    # Up to 16 bytes a load; several numbers of one only where they are neighbours.
    TOGETHER: tl.constexpr = E * G if FLAT else G
    NUMBERS: tl.constexpr = 4 if not COMPLEX and TOGETHER % 4 == 0 else 2 if TOGETHER % 2 == 0 else 1
    real, imag = (), ()
    part = tl.arange(0, NUMBERS * PARTS)[None, :]
    lane = tl.arange(0, P)[:, None] * E
    base = pointer + (first.to(tl.int64) * stride + column) * PARTS
    for k in tl.static_range(E * G // NUMBERS):
        number = k * NUMBERS + part // PARTS
        if FLAT:
            address = base + (lane * (G * PARTS) + (k * NUMBERS * PARTS + part))
        else:
            address = base + (lane + k * NUMBERS // G).to(tl.int64) * stride * PARTS + (k * NUMBERS % G * PARTS + part)
        if MASKED or WIDTH % G != 0:
            inside = (first + lane + number // G < sites) & (column + number % G < WIDTH)
            x = tl.load(address, mask=inside, other=0.0)
        else:
            x = tl.load(address)
        r, i = unpack(x, COMPLEX, NUMBERS, P)
        real, imag = real + r, imag + i
    return real, imag


@triton.jit
def store_values(
    pointer, first, sites, column, STEP: tl.constexpr, real, imag, COMPLEX: tl.constexpr, WIDTH: tl.constexpr,
    MASKED: tl.constexpr, P: tl.constexpr, E: tl.constexpr, G: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """The inverse of `load_values` into sites STEP numbers apart.

    PIECE neighbours of a lane at a time where all its numbers are neighbours, else a site at a time, of PIECE >= G.
    """
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    part = tl.arange(0, PIECE * PARTS)[None, :]
    lane = tl.arange(0, P)[:, None] * E
    base = pointer + (first.to(tl.int64) * STEP + column) * PARTS
    if G == STEP:
        for k in tl.static_range(E * G // PIECE):
            x = join_numbers(real, imag, k * PIECE, PIECE, COMPLEX, P, PIECE)
            address = base + (lane * (G * PARTS) + (k * PIECE * PARTS + part))
            if MASKED:
                tl.store(address, x, mask=first + lane + (k * PIECE + part // PARTS) // G < sites)
            else:
                tl.store(address, x)
    else:
        for e in tl.static_range(E):
            x = join_numbers(real, imag, e * G, G, COMPLEX, P, PIECE)
            address = base + ((lane + e).to(tl.int64) * (STEP * PARTS) + part)
            number = part // PARTS
            if MASKED or WIDTH % G != 0 or PIECE != G:
                inside = (first + lane + e < sites) & (number < G) & (column + number < WIDTH)
                tl.store(address, x, mask=inside)
            else:
                tl.store(address, x)


@triton.jit
def join_numbers(
    real, imag, FIRST: tl.constexpr, COUNT: tl.constexpr, COMPLEX: tl.constexpr, P: tl.constexpr, PIECE: tl.constexpr
):
    """COUNT numbers from number FIRST on as (P, PIECE), or as pairs of floats (P, 2 PIECE); behind them, any."""
    kept_r, kept_i = (), ()
    for m in tl.static_range(PIECE):
        kept_r = kept_r + (real[FIRST + (m if m < COUNT else 0)],)
        if COMPLEX:
            kept_i = kept_i + (imag[FIRST + (m if m < COUNT else 0)],)
    x = join_sites(kept_r, 0, P, PIECE)
    return tl.reshape(tl.join(x, join_sites(kept_i, 0, P, PIECE)), (P, PIECE * 2)) if COMPLEX else x


@triton.jit
def scan_terms(fr, fi, br, bi, FIRST: tl.constexpr, G: tl.constexpr, REVERSE: tl.constexpr):
    """The terms of lanes 0..j (with REVERSE j..P) of columns FIRST..G, whose maps share a factor."""
    if G - FIRST == 1:
        _, _, t0r, t0i = tl.associative_scan((fr, fi, br[FIRST], bi[FIRST]), 0, then_linear, reverse=REVERSE)
        return (t0r,), (t0i,)
    elif G - FIRST == 2 or G - FIRST == 4:
        _, _, t0r, t0i, t1r, t1i = tl.associative_scan(
            (fr, fi, br[FIRST], bi[FIRST], br[FIRST + 1], bi[FIRST + 1]), 0, then_two, reverse=REVERSE
        )
        if G - FIRST == 2:
            return (t0r, t1r), (t0i, t1i)
        else:
            sr, si = scan_terms(fr, fi, br, bi, FIRST + 2, G, REVERSE)
            return (t0r, t1r) + sr, (t0i, t1i) + si
    else:
        _, _, t0r, t0i, t1r, t1i, t2r, t2i = tl.associative_scan(
            (fr, fi, br[FIRST], bi[FIRST], br[FIRST + 1], bi[FIRST + 1], br[FIRST + 2], bi[FIRST + 2]),
            0, then_three, reverse=REVERSE,
        )  # fmt: skip
        if G - FIRST == 3:
            return (t0r, t1r, t2r), (t0i, t1i, t2i)
        else:
            sr, si = scan_terms(fr, fi, br, bi, FIRST + 3, G, REVERSE)
            return (t0r, t1r, t2r) + sr, (t0i, t1i, t2i) + si
