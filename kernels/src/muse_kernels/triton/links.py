"""Handing a complex number from chunk to chunk of a row within one launch, one program a chunk.

Links (R, C) of int64 hold the number before each place of a row, a complex number as one word, -1 until it is known; so
the number and the news of it arrive at once. Behind them stands the counter of the programs, from -1 on.
"""

import triton
import triton.language as tl


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
