"""The carries between the chunks of long rows.

Either one program a row runs over what the chunks do, in a launch of its own; or the chunks, one program each, hand a
complex number on within their launch. Links (R, C) of int64 then hold the number before each place of a row, as one
word, -1 until it is known; so the number and the news of it arrive at once. Behind them stands the counter of the
programs, from -1 on.
"""

import triton
import triton.language as tl

from .complex import load_complex, multiply_add, then_linear
from .moebius import act, prefix_products


@triton.jit
def moebius_carry_kernel(summary_ptr, initial_ptr, start_ptr, chunks, BLOCK: tl.constexpr):
    """theta before each chunk, start (R, C), from the chunks' matrices (R, C, 8) and theta before the row (R,)."""
    row = tl.program_id(0).to(tl.int64)
    tr, ti = load_complex(initial_ptr + row * 2)
    start = start_ptr + row * chunks * 2
    tl.store(start, tr)
    tl.store(start + 1, ti)
    lane = tl.arange(0, BLOCK)
    for first in range(0, chunks - 1, BLOCK):
        chunk = first + lane
        inside = chunk < chunks - 1
        address = summary_ptr + (row * chunks + chunk) * 8
        x0r = tl.load(address, mask=inside, other=1.0)
        x0i = tl.load(address + 1, mask=inside, other=0.0)
        x1r = tl.load(address + 2, mask=inside, other=0.0)
        x1i = tl.load(address + 3, mask=inside, other=0.0)
        y0r = tl.load(address + 4, mask=inside, other=0.0)
        y0i = tl.load(address + 5, mask=inside, other=0.0)
        y1r = tl.load(address + 6, mask=inside, other=1.0)
        y1i = tl.load(address + 7, mask=inside, other=0.0)
        er, ei = act(prefix_products((x0r, x0i, x1r, x1i, y0r, y0i, y1r, y1i)), tr, ti)
        tl.store(start + (chunk + 1) * 2, er, mask=inside)
        tl.store(start + (chunk + 1) * 2 + 1, ei, mask=inside)
        tr = tl.sum(tl.where(lane == BLOCK - 1, er, 0.0), axis=0)
        ti = tl.sum(tl.where(lane == BLOCK - 1, ei, 0.0), axis=0)


@triton.jit
def linear_carry_kernel(
    factor_ptr, factor_stride, term_ptr, term_stride, initial_ptr, start_ptr, chunks, width,
    REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x before each chunk, start (R, C, W), from the chunks' maps x -> f x + b and x before the row (R, W).

    Factors (R, C) are `factor_stride` floats apart, terms (R, C, W) `term_stride` floats from chunk to chunk.
    """
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1)
    xr, xi = load_complex(initial_ptr + (row * width + column) * 2)
    start = start_ptr + (row * chunks * width + column) * 2
    ends = start + ((chunks - 1) * width * 2 if REVERSE else 0)
    tl.store(ends, xr)
    tl.store(ends + 1, xi)
    lane = tl.arange(0, BLOCK)
    for first in range(0, chunks - 1, BLOCK):
        step = first + lane
        inside = step < chunks - 1
        chunk = chunks - 1 - step if REVERSE else step
        following = chunk - 1 if REVERSE else chunk + 1
        factor = factor_ptr + (row * chunks + chunk) * factor_stride
        term = term_ptr + (row * chunks + chunk) * term_stride + column * 2
        fr = tl.load(factor, mask=inside, other=1.0)
        fi = tl.load(factor + 1, mask=inside, other=0.0)
        br = tl.load(term, mask=inside, other=0.0)
        bi = tl.load(term + 1, mask=inside, other=0.0)
        fr, fi, br, bi = tl.associative_scan((fr, fi, br, bi), 0, then_linear)
        er, ei = multiply_add(fr, fi, xr, xi, br, bi)
        tl.store(start + following * width * 2, er, mask=inside)
        tl.store(start + following * width * 2 + 1, ei, mask=inside)
        xr = tl.sum(tl.where(lane == BLOCK - 1, er, 0.0), axis=0)
        xi = tl.sum(tl.where(lane == BLOCK - 1, ei, 0.0), axis=0)


@triton.jit
def next_place(link_ptr, rows, chunks):
    """(row, place) of this program; all rows' first places come before the second ones.

    Programs are numbered in the order in which they start: whoever waits, waits for a program that runs.
    """
    number = tl.atomic_add(link_ptr + rows.to(tl.int64) * chunks, 1, sem="relaxed") + 1
    return (number % rows).to(tl.int32), (number // rows).to(tl.int32)


@triton.jit
def receive(link, place, first_r, first_i):
    """The number at a link as soon as it is there; at the first place, `first`."""
    word = tl.load(link, volatile=True)
    while (word == -1) & (place > 0):
        word = tl.load(link, volatile=True)
    r = word.to(tl.int32).to(tl.float32, bitcast=True)
    i = (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return tl.where(place > 0, r, first_r), tl.where(place > 0, i, first_i)


@triton.jit
def hand_on(link, r, i, sending):
    """Store the number of the one lane that sends at a link."""
    low = r.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    word = (i.to(tl.int32, bitcast=True).to(tl.int64) << 32) | low
    # Two not-a-numbers may read as -1, for which the next chunk would wait for ever.
    word = tl.where(word == -1, 0x7FC000007FC00000, word)
    tl.atomic_xchg(tl.broadcast_to(link, word.shape), word, mask=sending, sem="relaxed")
