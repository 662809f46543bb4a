"""What each token of a chunk leaves in the momentum and in P, forwards and backwards: a program some chunks.

With d the log-decays and m the log-momenta of a chunk's tokens j,
    s_j = exp(sum_{i>j} m_i),   x_j = exp(sum_{i>j} d_i),   y_j = x_j + e^{m_{j+1}} y_{j+1},
shares s in the momentum and y in P; the earlier momentum has e^{m_0} y_0 in P. Dead tokens have no x, s and, behind the
recursion, no y. Backwards x_bar_j = y_bar_j + e^{m_j} x_bar_{j-1}, and m_bar_j gets e^{m_j} y_j x_bar_{j-1}.
Source: mathematics §3.
"""

import triton
import triton.language as tl


@triton.jit
def composed(a_first, b_first, a_second, b_second):
    """The steps b + a y of two pieces, one after the other, as one."""
    return a_first * a_second, b_first * a_second + b_second


@triton.jit
def tokens_of(gate, place_of, t_stride, ts, inside, C: tl.constexpr):
    """A tile's gates (R, T) and those of each one's next token."""
    place = gate + place_of + ts[None, :] * t_stride
    following = tl.load(place + t_stride, mask=inside & (ts + 1 < C)[None, :], other=0.0)
    return tl.load(place, mask=inside, other=0.0), following


@triton.jit
def recursions(m_next, d_next, living, real):
    """(s, x, y) of the next tokens' gates, without the dead tokens' zeros in s and y."""
    s = tl.where(real, tl.exp(tl.cumsum(m_next, 1, reverse=True)), 0.0)
    x = tl.where(living, tl.exp(tl.cumsum(d_next, 1, reverse=True)), 0.0)
    _, y = tl.associative_scan((tl.exp(m_next), x), 1, composed, reverse=True)
    return s, x, y


@triton.jit
def read_chunks(
    log_momentum,
    log_decay,
    alive,
    row,
    rows,
    heads,
    chunks,
    momentum_b,
    momentum_h,
    momentum_n,
    momentum_t,
    decay_b,
    decay_h,
    decay_n,
    decay_t,
    C: tl.constexpr,
    T: tl.constexpr,
    ALIVE: tl.constexpr,
):
    """Of the chunks `row` (R,) of (B, H, n): which tokens there are and which of them live, their gates m and d, and
    s, x and y, (R, T) each."""
    ts = tl.arange(0, T)
    i, h, b = row % chunks, row // chunks % heads, row // chunks // heads
    real = (row < rows)[:, None] & (ts < C)[None, :]
    own = (b * momentum_b + h * momentum_h + i * momentum_n)[:, None]
    m, m_next = tokens_of(log_momentum, own, momentum_t, ts, real, C)
    own = (b * decay_b + h * decay_h + i * decay_n)[:, None]
    d, d_next = tokens_of(log_decay, own, decay_t, ts, real, C)
    living = real
    if ALIVE:
        living = tl.load(alive + (b * chunks + i)[:, None] * C + ts[None, :], mask=real, other=0) != 0
    s, x, y = recursions(m_next, d_next, living, real)
    return real, living, m, d, s, x, y


@triton.jit
def shares_kernel(
    log_momentum,
    log_decay,
    alive,
    shares,
    momentum,
    earlier,
    kept,
    rows,
    heads,
    chunks,
    momentum_b,
    momentum_h,
    momentum_n,
    momentum_t,
    decay_b,
    decay_h,
    decay_n,
    decay_t,
    C: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    ALIVE: tl.constexpr,
):
    """Gates (B, H, n, C) of any strides, `alive` (B, n, C); `shares` (B, H, n, 2, C) of s and y, and (B, H, n)."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    ts = tl.arange(0, T)
    real, living, m, d, s, _, y = read_chunks(
        log_momentum, log_decay, alive, row, rows, heads, chunks, momentum_b, momentum_h, momentum_n, momentum_t,
        decay_b, decay_h, decay_n, decay_t, C, T, ALIVE,
    )  # fmt: skip
    place = shares + row[:, None] * 2 * C + ts[None, :]
    tl.store(place, tl.where(living, s, 0.0), mask=real)
    tl.store(place + C, tl.where(living, y, 0.0), mask=real)
    tl.store(momentum + row, tl.exp(tl.sum(m, 1)), mask=row < rows)
    tl.store(kept + row, tl.exp(tl.sum(d, 1)), mask=row < rows)
    tl.store(earlier + row, tl.sum(tl.where((ts == 0)[None, :], tl.exp(m) * y, 0.0), 1), mask=row < rows)


@triton.jit
def shares_back_kernel(
    log_momentum,
    log_decay,
    alive,
    to_shares,
    to_momentum,
    to_earlier,
    to_kept,
    to_log_momentum,
    to_log_decay,
    rows,
    heads,
    chunks,
    momentum_b,
    momentum_h,
    momentum_n,
    momentum_t,
    decay_b,
    decay_h,
    decay_n,
    decay_t,
    C: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    ALIVE: tl.constexpr,
):
    """As `shares_kernel`; the adjoints of the gates (B, n C, H)."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    ts = tl.arange(0, T)
    real, living, m, d, s, x, y = read_chunks(
        log_momentum, log_decay, alive, row, rows, heads, chunks, momentum_b, momentum_h, momentum_n, momentum_t,
        decay_b, decay_h, decay_n, decay_t, C, T, ALIVE,
    )  # fmt: skip
    place = to_shares + row[:, None] * 2 * C + ts[None, :]
    of_s = s * tl.load(place, mask=living, other=0.0)
    of_y = tl.load(place + C, mask=living, other=0.0)
    first = (ts == 0)[None, :]
    of_earlier = tl.load(to_earlier + row, mask=row < rows, other=0.0)[:, None]
    share = tl.exp(m)
    of_y += tl.where(first, of_earlier * share, 0.0)
    _, of_x = tl.associative_scan((share, of_y), 1, composed)
    # x_bar of the token before, times e^{m}, is what the recursion adds to y_bar.
    of_m = y * tl.where(first, of_earlier * share, of_x - of_y) + tl.cumsum(of_s, 1) - of_s
    of_m += tl.load(to_momentum + row, mask=row < rows, other=0.0)[:, None] * tl.exp(tl.sum(m, 1))[:, None]
    of_x *= x
    of_d = tl.cumsum(of_x, 1) - of_x
    of_d += tl.load(to_kept + row, mask=row < rows, other=0.0)[:, None] * tl.exp(tl.sum(d, 1))[:, None]
    i, h, b = row % chunks, row // chunks % heads, row // chunks // heads
    place = ((b * chunks + i)[:, None] * C + ts[None, :]) * heads + h[:, None]
    tl.store(to_log_momentum + place, of_m, mask=real)
    tl.store(to_log_decay + place, of_d, mask=real)
