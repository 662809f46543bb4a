"""Loads of tokens and their decays for the kernels of scores under a decay per channel.

Letters: a chunk has C tokens, numbered from its start, in blocks of T = 16; tiles are (tokens, BK channels) in float32.
Tokens before `first` or from `end` on load as zeros. All sums of decays are of what lies between two tokens, never a
difference of longer sums: a fast token elsewhere costs no digit, and no exponent is above zero.
"""

import triton
import triton.language as tl


@triton.jit
def load_tokens(x, step, tokens, first, end, lane, held):
    """Rows `tokens` of x (N, K), whose rows are `step` apart, in float32."""
    inside = (tokens >= first) & (tokens < end)
    at = x + (tokens[:, None] * step + lane[None, :])
    return tl.load(at, mask=inside[:, None] & held[None, :], other=0.0).to(tl.float32)


@triton.jit
def decay_since(decay, step, tokens, first, end, lane, held):
    """Sums of the decays of tokens `first` … t, for t in `tokens`, a block that starts at `first`."""
    return tl.cumsum(load_tokens(decay, step, tokens, first, end, lane, held), axis=0)


@triton.jit
def decay_before(decay, step, tokens, first, end, lane, held):
    """Sums of the decays of tokens `first` … t - 1."""
    return tl.cumsum(load_tokens(decay, step, tokens - 1, first, end, lane, held), axis=0)


@triton.jit
def decay_until(decay, step, tokens, first, end, lane, held, T: tl.constexpr):
    """Sums of the decays behind t, up to the end of its block, which starts at `first`."""
    end = tl.minimum(end, first + T)
    return tl.cumsum(load_tokens(decay, step, tokens + 1, first, end, lane, held), axis=0, reverse=True)


@triton.jit
def decay_of_blocks(decay, step, first, last, end, lane, held, T: tl.constexpr, BK: tl.constexpr):
    """(BK,): the sum of the decays of the blocks from token `first` to before token `last`."""
    total = tl.zeros((BK,), tl.float32)
    for block in range(first, last, T):
        total += tl.sum(load_tokens(decay, step, block + tl.arange(0, T), first, end, lane, held), axis=0)
    return total


@triton.jit
def decay_between(decay, step, tokens, first, end, lane, held, line, BACK: tl.constexpr):
    """(T, T, BK): e to the sum of the decays of tokens j + 1 … i - BACK of a block, for j < i - BACK, else zero."""
    one = load_tokens(decay, step, tokens - BACK, first, end, lane, held)
    passed = (line[None, :] < line[:, None] - BACK)[:, :, None]
    return tl.where(passed, tl.exp(tl.cumsum(tl.where(passed, one[:, None, :], 0.0), axis=0)), 0.0)


@triton.jit
def product(a, b, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """a @ b of operands rounded to OPERAND, summed in float32."""
    return tl.dot(a.to(OPERAND), b.to(OPERAND), input_precision=PRECISION)
