"""Kernels of short convolutions: a program walks through T stretches of tokens side by side, U tokens of each a turn,
of G channels: the K of one head where those are a query or a key, whose length it needs.

It keeps what the last S - 1 tokens were and, backward, what their gradients lack of the tokens behind them, so that
every number is read once; what a turn reads is loaded before any of it is used. All rows have as many stretches, of
`length` tokens, whole turns, but for their last. Channel groups are numbered through: queries, keys, then the values in
groups of G; a convolution alone has values only. The S - 1 inputs before the first token come from `initial`. What lies
before the start of the document of the token that reads it counts as zero: a token may look back `reach` tokens.
"""

import triton
import triton.language as tl


@triton.jit
def locate(part, groups, lane, M_ALL, K: tl.constexpr, G: tl.constexpr):
    """First channel of a group, and which of its lanes hold one."""
    is_value = part >= 2 * groups
    first = tl.where(is_value, 2 * groups * K + (part - 2 * groups) * G, part * K)
    limit = tl.where(is_value, M_ALL - (part - 2 * groups) * G, K)
    return first + lane, lane < limit


@triton.jit
def stretch_of(block, rows, stretches, length, tokens, T: tl.constexpr):
    """Of a program's T stretches (T, 1): batch row, first token, and how many the row has from there on. What is no
    stretch has none."""
    number = block * T + tl.arange(0, T)[:, None]
    start = number % stretches * length
    left = tl.where(number < rows * stretches, tokens - start, 0)
    return tl.minimum(number // stretches, rows - 1).to(tl.int64), start, left


@triton.jit
def sigmoid(y):
    """1 / (1 + exp(-y)) as the square of a reciprocal root: a division takes five times as many instructions."""
    root = tl.rsqrt(1.0 + tl.exp2(y * -1.4426950408889634))
    return root * root


@triton.jit
def load_gains(taps, channel, channels, held, S: tl.constexpr):
    """The taps of each lag, (1, G)."""
    gains = ()
    for lag in tl.static_range(S):
        gains = gains + (tl.load(taps + lag * channels + channel, mask=held, other=0.0).to(tl.float32),)
    return gains


@triton.jit
def load_before(
    x, x_step, initial, resets, channels, start, left, held, INITIAL: tl.constexpr, RESETS: tl.constexpr,
    S: tl.constexpr,
):  # fmt: skip
    """The S - 1 inputs (T, G) before token `start`, which `x` (T, G), `initial` (T, G) and `resets` (T, 1) point to,
    the last one first, and how far the token before `start` may look back (T, 1)."""
    inputs, reach = (), tl.full(start.shape, S - 1, tl.int32)
    for back in tl.static_range(1, S):
        inside = (start >= back) & (left > 0) & held
        y = tl.load(x - back * x_step, mask=inside, other=0.0).to(tl.float32)
        if INITIAL:
            before = (start < back) & (left > 0) & held
            y += tl.load(initial + (S - 1 - back) * channels, mask=before, other=0.0).to(tl.float32)
        inputs = inputs + (y,)
    if RESETS:
        for place in tl.static_range(1, S):
            inside = (start >= S - place) & (left > 0)
            reach = reached(reach, tl.load(resets - (S - place), mask=inside, other=False), S)
    return inputs, reach


@triton.jit
def reached(reach, starts, S: tl.constexpr):
    """How far a token may look back, from that of the token before and from whether a document starts with it."""
    return tl.where(starts, 0, tl.minimum(reach + 1, S - 1))


@triton.jit
def readable(reach, LAG: tl.constexpr, value, RESETS: tl.constexpr):
    """value where the token may look back that far, else zero."""
    if RESETS:
        return tl.where(reach >= LAG, value, 0.0)
    else:
        return value


@triton.jit
def pushed(new, ring, S: tl.constexpr):
    """The last S - 1 with `new` in front and without the last of `ring`."""
    found = ()
    if S > 1:
        found = (new,)
    for place in tl.static_range(S - 2):
        found = found + (ring[place],)
    return found


@triton.jit
def convolved(gains, read, S: tl.constexpr):
    """Sum over lags of gain times input."""
    y = gains[0] * read[0]
    for lag in tl.static_range(1, S):
        y += gains[lag] * read[lag]
    return y


@triton.jit
def walk_forward(
    x, x_step, resets, output, y_step, left, length, held, gains, inputs, reach, shortest, RESETS: tl.constexpr,
    ACTIVE: tl.constexpr, UNIT: tl.constexpr, S: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """The results of T stretches, whose first tokens x, resets and output point to."""
    left = tl.minimum(left, length)
    for _turn in range(0, length, U):
        seen, starts = (), ()
        for step in tl.static_range(U):
            seen = seen + (tl.load(x + step * x_step, mask=(step < left) & held, other=0.0),)
            if RESETS:
                starts = starts + (tl.load(resets + step, mask=step < left, other=False),)
        for step in tl.static_range(U):
            now = seen[step].to(tl.float32)
            if RESETS:
                reach = reached(reach, starts[step], S)
            read = (now,)
            for lag in tl.static_range(1, S):
                read = read + (readable(reach, lag, inputs[lag - 1], RESETS),)
            y = convolved(gains, read, S)
            if ACTIVE:
                y = y * sigmoid(y)
            if UNIT:
                y = y * tl.rsqrt(tl.maximum(tl.sum(y * y, axis=1, keep_dims=True), shortest * shortest))
            tl.store(output + step * y_step, y, mask=(step < left) & held)
            inputs = pushed(now, inputs, S)
        x += U * x_step
        output += U * y_step
        if RESETS:
            resets += U
        left -= U


@triton.jit
def short_convolution_kernel(
    x, x_b, x_n, taps, initial, resets, query, key, value, tokens, rows, stretches, length, groups, parts, M_ALL,
    shortest, INITIAL: tl.constexpr, RESETS: tl.constexpr, ACTIVE: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
    T: tl.constexpr, G: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """Queries, keys (B, N, H K) and values (B, N, H M), contiguous; `groups` is H, M_ALL is H M, and `parts` how many
    channel groups there are. Without ACTIVE the sums alone, of values."""
    part, block = tl.program_id(0) % parts, tl.program_id(0) // parts
    lane = tl.arange(0, G)[None, :]
    channels = 2 * groups * K + M_ALL
    channel, held = locate(part, groups, lane, M_ALL, K, G)
    if part < groups:
        output, width, column = query, groups * K, part * K
    elif part < 2 * groups:
        output, width, column = key, groups * K, (part - groups) * K
    else:
        output, width, column = value, M_ALL, (part - 2 * groups) * G
    gains = load_gains(taps, channel, channels, held, S)
    x_step, y_step = tl.cast(x_n, tl.int64), tl.cast(width, tl.int64)
    batch, start, left = stretch_of(block, rows, stretches, length, tokens, T)
    x = x + (batch * x_b + start * x_step + channel)
    output = output + ((batch * tokens + start) * y_step + column + lane)
    if INITIAL:
        initial = initial + ((batch * (S - 1) + start) * channels + channel)
    if RESETS:
        resets = resets + (batch * tokens + start)
    inputs, reach = load_before(x, x_step, initial, resets, channels, start, left, held, INITIAL, RESETS, S)
    if ACTIVE and part < 2 * groups:
        walk_forward(
            x, x_step, resets, output, y_step, left, length, held, gains, inputs, reach, shortest, RESETS, True, True,
            S, U,
        )  # fmt: skip
    else:
        walk_forward(
            x, x_step, resets, output, y_step, left, length, held, gains, inputs, reach, shortest, RESETS, ACTIVE,
            False, S, U,
        )  # fmt: skip


@triton.jit
def unit_gradient(g, y, shortest):
    """Gradient of y from that of y over its length, or over `shortest` where it is shorter."""
    square = tl.sum(y * y, axis=1, keep_dims=True)
    along = tl.sum(g * y, axis=1, keep_dims=True)
    least = shortest * shortest
    inverse = tl.rsqrt(tl.maximum(square, least))
    turned = tl.where(square > least, along * inverse * inverse, 0.0)
    return (g - y * turned) * inverse


@triton.jit
def turn_back(
    x, x_step, incoming, g_step, resets, dx, dx_step, dinitial, channels, own, left, carries, held, gains, inputs,
    reach, pending, sums, shortest, COUNTED: tl.constexpr, INITIAL: tl.constexpr, RESETS: tl.constexpr,
    ACTIVE: tl.constexpr, UNIT: tl.constexpr, S: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """U tokens of each stretch, behind the `own` that were walked before; its row has `left` more (T, 1).

    `pending` is what the gradients of the last S - 1 tokens have so far; the one S - 1 before a token is complete with
    it, and stored where it is of the stretch, or before the first of a row (`carries`). COUNTED adds to the sums.
    """
    seen, given, starts = (), (), ()
    for step in tl.static_range(U):
        inside = (step < left) & held
        seen = seen + (tl.load(x + step * x_step, mask=inside, other=0.0),)
        given = given + (tl.load(incoming + step * g_step, mask=inside, other=0.0),)
        if RESETS:
            starts = starts + (tl.load(resets + step, mask=step < left, other=False),)
    for step in tl.static_range(U):
        now, g = seen[step].to(tl.float32), given[step].to(tl.float32)
        if RESETS:
            reach = reached(reach, starts[step], S)
        read = (now,)
        for lag in tl.static_range(1, S):
            read = read + (readable(reach, lag, inputs[lag - 1], RESETS),)
        if ACTIVE:
            y = convolved(gains, read, S)
            share = sigmoid(y)
            y = y * share
            if UNIT:
                g = unit_gradient(g, y, shortest)
            g = g * (share + (y - y * share))
        if COUNTED:
            new = ()
            for lag in tl.static_range(S):
                new = new + (sums[lag] + g * read[lag],)
            sums = new
        inputs = pushed(now, inputs, S)
        found = (gains[0] * g,)
        for lag in tl.static_range(1, S):
            found = found + (pending[lag - 1] + gains[lag] * readable(reach, lag, g, RESETS),)
        back = step - (S - 1)
        tl.store(dx + back * dx_step, found[S - 1], mask=(own + back >= 0) & (back < left) & held)
        if INITIAL:
            at = dinitial + (own + step) * channels
            tl.store(at, found[S - 1], mask=(own + back < 0) & carries & held)
        pending = ()
        for lag in tl.static_range(S - 1):
            pending = pending + (found[lag],)
    return inputs, reach, pending, sums


@triton.jit
def walk_back(
    x, x_step, incoming, g_step, resets, dx, dx_step, dinitial, channels, start, left, length, held, gains, inputs,
    reach, sums, shortest, INITIAL: tl.constexpr, RESETS: tl.constexpr, ACTIVE: tl.constexpr, UNIT: tl.constexpr,
    S: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """The sums of T stretches and, stored, their gradients. A stretch ends with the S - 1 tokens behind it, whose
    gradients reach its last ones."""
    carries, pending = (start == 0) & (left > 0), ()
    for _lag in tl.static_range(S - 1):
        pending = pending + (tl.zeros(inputs[0].shape, tl.float32),)
    for own in range(0, length, U):
        inputs, reach, pending, sums = turn_back(
            x, x_step, incoming, g_step, resets, dx, dx_step, dinitial, channels, own, left, carries, held, gains,
            inputs, reach, pending, sums, shortest, True, INITIAL, RESETS, ACTIVE, UNIT, S, U,
        )  # fmt: skip
        x += U * x_step
        incoming += U * g_step
        dx += U * dx_step
        if RESETS:
            resets += U
        left -= U
    if S > 1:
        inputs, reach, pending, sums = turn_back(
            x, x_step, incoming, g_step, resets, dx, dx_step, dinitial, channels, length, left, carries, held,
            gains, inputs, reach, pending, sums, shortest, False, INITIAL, RESETS, ACTIVE, UNIT, S, S - 1,
        )  # fmt: skip
    return sums


@triton.jit
def short_convolution_backward_kernel(
    x, x_b, x_n, taps, initial, resets, to_query, query_b, query_n, to_key, key_b, key_n, to_value, value_b, value_n,
    dx, dinitial, to_taps, tokens, rows, stretches, length, groups, parts, programs, M_ALL, shortest,
    INITIAL: tl.constexpr, RESETS: tl.constexpr, ACTIVE: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
    T: tl.constexpr, G: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """dx (B, N, C) contiguous, dinitial (B, S - 1, C), and the taps' gradient by shares of `programs` a channel group,
    (programs, S, C)."""
    part, share = tl.program_id(0) % parts, tl.program_id(0) // parts
    lane = tl.arange(0, G)[None, :]
    channels = 2 * groups * K + M_ALL
    channel, held = locate(part, groups, lane, M_ALL, K, G)
    if part < groups:
        incoming, incoming_b, incoming_n, column = to_query, query_b, query_n, part * K
    elif part < 2 * groups:
        incoming, incoming_b, incoming_n, column = to_key, key_b, key_n, (part - groups) * K
    else:
        incoming, incoming_b, incoming_n, column = to_value, value_b, value_n, (part - 2 * groups) * G
    gains, sums = load_gains(taps, channel, channels, held, S), ()
    for _lag in tl.static_range(S):
        sums = sums + (tl.zeros((T, G), tl.float32),)
    x_step, g_step = tl.cast(x_n, tl.int64), tl.cast(incoming_n, tl.int64)
    dx_step = tl.cast(channels, tl.int64)
    for block in range(share, tl.cdiv(rows * stretches, T), programs):
        batch, start, left = stretch_of(block, rows, stretches, length, tokens, T)
        x_at = x + (batch * x_b + start * x_step + channel)
        g_at = incoming + (batch * incoming_b + start * g_step + column + lane)
        dx_at = dx + ((batch * tokens + start) * dx_step + channel)
        initial_at, dinitial_at, resets_at = initial, dinitial, resets
        if INITIAL:
            initial_at = initial + ((batch * (S - 1) + start) * channels + channel)
            dinitial_at = dinitial + ((batch * (S - 1) + start) * channels + channel)
        if RESETS:
            resets_at = resets + (batch * tokens + start)
        inputs, reach = load_before(
            x_at, x_step, initial_at, resets_at, channels, start, left, held, INITIAL, RESETS, S
        )
        if ACTIVE and part < 2 * groups:
            sums = walk_back(
                x_at, x_step, g_at, g_step, resets_at, dx_at, dx_step, dinitial_at, channels, start, left, length, held,
                gains, inputs, reach, sums, shortest, INITIAL, RESETS, True, True, S, U,
            )  # fmt: skip
        else:
            sums = walk_back(
                x_at, x_step, g_at, g_step, resets_at, dx_at, dx_step, dinitial_at, channels, start, left, length, held,
                gains, inputs, reach, sums, shortest, INITIAL, RESETS, ACTIVE, False, S, U,
            )  # fmt: skip
    shares = to_taps + tl.cast(share, tl.int64) * S * channels
    for lag in tl.static_range(S):
        tl.store(shares + lag * channels + channel, tl.sum(sums[lag], axis=0, keep_dims=True), mask=held)
