"""Decay within a chunk of C tokens, from the running sum of the log-decay and the count of resets.

Tokens past the sequence's end load as zeros: they neither decay nor write.
"""

import triton
import triton.language as tl


@triton.jit
def load_decay(log_decay, stride, resets, resets_stride, rows, inside, HAS_RESETS: tl.constexpr):
    """Log-decay of each token (C,), zero at a reset, whose decay multiplies zero; number of resets up to each (C,)."""
    decay = tl.load(log_decay + rows * stride, mask=inside, other=0.0)
    segment = tl.zeros_like(rows)
    if HAS_RESETS:
        reset = tl.load(resets + rows * resets_stride, mask=inside, other=0).to(tl.int32)
        decay = tl.where(reset != 0, 0.0, decay)
        segment = tl.cumsum(reset, axis=0)
    return decay, segment


@triton.jit
def between(to_i, from_j, segment, rows, STRICT: tl.constexpr, HAS_RESETS: tl.constexpr):
    """(C, C): exp(to_i - from_j) where token i may see the write of j; masked first, so that exp cannot overflow."""
    if STRICT:
        seen = rows[:, None] > rows[None, :]
    else:
        seen = rows[:, None] >= rows[None, :]
    if HAS_RESETS:
        seen = seen & (segment[:, None] == segment[None, :])
    return tl.exp(tl.where(seen, to_i[:, None] - from_j[None, :], float("-inf")))


@triton.jit
def between_transposed(to_i, from_j, segment, rows, STRICT: tl.constexpr, HAS_RESETS: tl.constexpr):
    """`between` with j down and i across: transposing a product of tl.dot miscompiles on Hopper before Triton 3.7.1."""
    if STRICT:
        seen = rows[None, :] > rows[:, None]
    else:
        seen = rows[None, :] >= rows[:, None]
    if HAS_RESETS:
        seen = seen & (segment[:, None] == segment[None, :])
    return tl.exp(tl.where(seen, to_i[None, :] - from_j[:, None], float("-inf")))


@triton.jit
def from_start(exponent, segment, HAS_RESETS: tl.constexpr):
    """(C,): decay from the state before the chunk, zero after a reset."""
    if HAS_RESETS:
        exponent = tl.where(segment == 0, exponent, float("-inf"))
    return tl.exp(exponent)


@triton.jit
def to_end(after, total, segment, last, HAS_RESETS: tl.constexpr):
    """(C,): decay of each token's write to the chunk's end, zero before its last reset; `last` counts its resets."""
    exponent = total - after
    if HAS_RESETS:
        exponent = tl.where(segment == last, exponent, float("-inf"))
    return tl.exp(exponent)


@triton.jit
def across(total, last, HAS_RESETS: tl.constexpr):
    """Decay from the chunk's start to its end, zero where it holds a reset."""
    if HAS_RESETS:
        total = tl.where(last == 0, total, float("-inf"))
    return tl.exp(total)
