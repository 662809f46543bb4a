"""Decay within a chunk of C tokens, from the running sum of the log-decay and the count of resets.

Tokens past the sequence's end load as zeros: they neither decay nor write.
"""

import triton
import triton.language as tl


@triton.jit
def load_gates(
    log_decay, decay_b, decay_n, decay_h, rate, rate_b, rate_n, rate_h, resets, resets_n, b, h, start, rows, inside,
    READ_BEFORE: tl.constexpr, HAS_RESETS: tl.constexpr,
):  # fmt: skip
    """Rates of the tokens (C,); running sums of the log-decay up to each token's read and write, (C,) each, and over
    the chunk; numbers of resets up to each token (C,), and in the chunk.

    A reset's own decay multiplies zero and counts as zero. `resets` points to the chunk's first token, `start`.
    """
    decay = tl.load(log_decay + b * decay_b + h * decay_h + start * decay_n + rows * decay_n, mask=inside, other=0.0)
    segment = tl.zeros_like(rows)
    if HAS_RESETS:
        reset = tl.load(resets + rows * resets_n, mask=inside, other=0).to(tl.int32)
        decay = tl.where(reset != 0, 0.0, decay)
        segment = tl.cumsum(reset, axis=0)
    rates = tl.load(rate + b * rate_b + h * rate_h + (start + rows) * rate_n, mask=inside, other=0.0)
    after = tl.cumsum(decay, axis=0)
    at_read = after - decay if READ_BEFORE else after
    total = tl.sum(decay, axis=0)
    last = tl.max(segment, axis=0)
    return rates, at_read, after, total, segment, last


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
