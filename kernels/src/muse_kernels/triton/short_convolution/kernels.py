"""Kernels of the short convolution: a program walks through T stretches of tokens side by side, a token of each at a
time, of G channels: the K of one head where those are a query or a key, whose length it needs.

It keeps what the last S tokens were (backward: and gave), so that every number is read once. The numbers of the next
token are on their way while those of one are used. All rows have as many stretches, of `length` tokens but for their
last. Channel groups are numbered through: queries, keys, then the values in groups of G. The S - 1 inputs before the
first token come from `initial`. What lies in an earlier document than the token that reads it counts as zero.
"""

import triton
import triton.language as tl


@triton.jit
def locate(group, groups, lane, M_ALL, K: tl.constexpr, G: tl.constexpr):
    """First channel of a group, and which of its lanes hold one."""
    is_value = group >= 2 * groups
    first = tl.where(is_value, 2 * groups * K + (group - 2 * groups) * G, group * K)
    limit = tl.where(is_value, M_ALL - (group - 2 * groups) * G, K)
    return first + lane, lane < limit


@triton.jit
def stretch_of(block, rows, stretches, length, tokens, reach, T: tl.constexpr):
    """Of a program's T stretches (T, 1): batch row, first token, the one behind the last, and the one behind the last
    that `reach` more tokens may be read of. What is no stretch has no tokens."""
    number = block * T + tl.arange(0, T)[:, None]
    live = number < rows * stretches
    start = number % stretches * length
    end = tl.where(live, tl.minimum(start + length, tokens), start)
    limit = tl.where(live, tl.minimum(start + (length + reach), tokens), 0)
    return (number // stretches).to(tl.int64), start, end, limit, live


@triton.jit
def load_inputs(
    x, x_n, initial, channel, channels, now, limit, live, held, INITIAL: tl.constexpr, S: tl.constexpr
):  # fmt: skip
    """(T, G): the inputs at token `now` (T, 1) of rows that `x` (T, 1) and `initial` (T, 1) point to; zero from `limit`
    on, and before the first token those of `initial`, or zero."""
    y = tl.load(x + now.to(tl.int64) * x_n + channel, mask=(now >= 0) & (now < limit) & held, other=0.0)
    if INITIAL:
        before = live & (now < 0) & held
        at = (now + (S - 1)).to(tl.int64) * channels + channel
        y = y.to(tl.float32) + tl.load(initial + at, mask=before, other=0.0).to(tl.float32)
    return y


@triton.jit
def load_document(document, now, limit, like, RESETS: tl.constexpr):
    """(T, 1): which document the token is of; the first one before the first token."""
    if RESETS:
        return tl.load(document + now, mask=(now >= 0) & (now < limit), other=0)
    else:
        return like


@triton.jit
def load_before(
    x, x_n, initial, document, channel, channels, start, limit, live, held, INITIAL: tl.constexpr,
    RESETS: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """The inputs (T, G) and documents (T, 1) of the tokens before `start`, the last one first: S each, though what
    stands last is not used."""
    inputs, documents = (), ()
    for lag in tl.static_range(1, S + 1):
        now = start - (lag if lag < S else S - 1)
        seen = load_inputs(x, x_n, initial, channel, channels, now, limit, live, held, INITIAL, S)
        inputs = inputs + (seen.to(tl.float32),)
        documents = documents + (load_document(document, now, limit, start, RESETS),)
    return inputs, documents


@triton.jit
def load_gains(taps, channel, channels, held, S: tl.constexpr):
    """The taps of each lag, (1, G)."""
    gains = ()
    for lag in tl.static_range(S):
        gains = gains + (tl.load(taps + lag * channels + channel, mask=held, other=0.0).to(tl.float32),)
    return gains


@triton.jit
def pushed(new, ring, S: tl.constexpr):
    """The ring with `new` in front and without its last."""
    found = (new,)
    for k in tl.static_range(S - 1):
        found = found + (ring[k],)
    return found


@triton.jit
def same_document(documents, LAG: tl.constexpr, READER: tl.constexpr, value, RESETS: tl.constexpr):
    """value where the tokens LAG and READER steps ago are of one document, else zero."""
    if RESETS:
        return tl.where(documents[LAG] == documents[READER], value, 0.0)
    else:
        return value


@triton.jit
def convolved(gains, inputs, documents, RESETS: tl.constexpr, S: tl.constexpr):
    """Sum over lags of gain times input."""
    y = gains[0] * inputs[0]
    for lag in tl.static_range(1, S):
        y += gains[lag] * same_document(documents, lag, 0, inputs[lag], RESETS)
    return y


@triton.jit
def short_convolution_kernel(
    x, x_b, x_n, taps, initial, document, query, key, value, tokens, rows, stretches, length, groups, M_ALL, shortest,
    INITIAL: tl.constexpr, RESETS: tl.constexpr, S: tl.constexpr, K: tl.constexpr, T: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Queries, keys (B, N, H K) and values (B, N, H M), contiguous; `groups` is H, M_ALL is H M."""
    group = tl.program_id(0)
    lane = tl.arange(0, G)[None, :]
    channels = 2 * groups * K + M_ALL
    channel, held = locate(group, groups, lane, M_ALL, K, G)
    if group < groups:
        output, width, column = query, groups * K, group * K
    elif group < 2 * groups:
        output, width, column = key, groups * K, (group - groups) * K
    else:
        output, width, column = value, M_ALL, (group - 2 * groups) * G
    gains = load_gains(taps, channel, channels, held, S)
    for block in range(tl.program_id(1), tl.cdiv(rows * stretches, T), tl.num_programs(1)):
        batch, start, end, limit, live = stretch_of(block, rows, stretches, length, tokens, 0, T)
        x_row = x + batch * x_b
        initial_row, document_row = initial, document
        if INITIAL:
            initial_row = initial + batch * ((S - 1) * channels)
        if RESETS:
            document_row = document + batch * tokens
        inputs, documents = load_before(
            x_row, x_n, initial_row, document_row, channel, channels, start, limit, live, held, INITIAL, RESETS, S
        )
        now = start
        seen = load_inputs(x_row, x_n, initial_row, channel, channels, now, limit, live, held, INITIAL, S)
        for _step in range(0, length):
            inputs = pushed(seen.to(tl.float32), inputs, S)
            documents = pushed(load_document(document_row, now, limit, start, RESETS), documents, S)
            seen = load_inputs(x_row, x_n, initial_row, channel, channels, now + 1, limit, live, held, INITIAL, S)
            y = convolved(gains, inputs, documents, RESETS, S)
            y = y * tl.sigmoid(y)
            if group < 2 * groups:
                y = y * (1.0 / tl.maximum(tl.sqrt(tl.sum(y * y, axis=1, keep_dims=True)), shortest))
            at = (batch * tokens + now) * width + column + lane
            tl.store(output + at, y, mask=(now < end) & held)
            now += 1


@triton.jit
def unit_gradient(g, y, shortest):
    """Gradient of y from that of y over its length, or over `shortest` where it is shorter."""
    length = tl.sqrt(tl.sum(y * y, axis=1, keep_dims=True))
    along = tl.sum(g * y, axis=1, keep_dims=True)
    inverse = 1.0 / tl.maximum(length, shortest)
    # Divided once a token and multiplied for every number of it.
    turned = tl.where(length > shortest, along * inverse * inverse, 0.0)
    return (g - y * turned) * inverse


@triton.jit
def short_convolution_backward_kernel(
    x, x_b, x_n, taps, initial, document, to_query, query_b, query_n, to_key, key_b, key_n, to_value, value_b, value_n,
    dx, dinitial, to_taps, tokens, rows, stretches, length, groups, M_ALL, shortest,
    INITIAL: tl.constexpr, RESETS: tl.constexpr, S: tl.constexpr, K: tl.constexpr, T: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """dx (B, N, C) contiguous, dinitial (B, S - 1, C), and the taps' gradient by shares, (programs, S, C).

    A stretch ends with the S - 1 tokens behind it, whose gradients reach its last ones.
    """
    group = tl.program_id(0)
    lane = tl.arange(0, G)[None, :]
    channels = 2 * groups * K + M_ALL
    channel, held = locate(group, groups, lane, M_ALL, K, G)
    if group < groups:
        incoming, incoming_b, incoming_n, column = to_query, query_b, query_n, group * K
    elif group < 2 * groups:
        incoming, incoming_b, incoming_n, column = to_key, key_b, key_n, (group - groups) * K
    else:
        incoming, incoming_b, incoming_n, column = to_value, value_b, value_n, (group - 2 * groups) * G
    gains, sums = load_gains(taps, channel, channels, held, S), ()
    for _lag in tl.static_range(S):
        sums = sums + (tl.zeros((T, G), tl.float32),)
    for block in range(tl.program_id(1), tl.cdiv(rows * stretches, T), tl.num_programs(1)):
        batch, start, end, limit, live = stretch_of(block, rows, stretches, length, tokens, S - 1, T)
        x_row, g_row = x + batch * x_b, incoming + batch * incoming_b + column
        initial_row, document_row = initial, document
        if INITIAL:
            initial_row = initial + batch * ((S - 1) * channels)
        if RESETS:
            document_row = document + batch * tokens
        inputs, documents = load_before(
            x_row, x_n, initial_row, document_row, channel, channels, start, limit, live, held, INITIAL, RESETS, S
        )
        gradients = ()
        for _lag in tl.static_range(S):
            gradients = gradients + (tl.zeros((T, G), tl.float32),)
        now = start
        seen = load_inputs(x_row, x_n, initial_row, channel, channels, now, limit, live, held, INITIAL, S)
        given = tl.load(g_row + now.to(tl.int64) * incoming_n + lane, mask=(now < limit) & held, other=0.0)
        # S tokens at a time, so that the kept ones come round and nothing moves between registers.
        for _round in range(0, tl.cdiv(length + S - 1, S)):
            for _step in tl.static_range(S):
                inputs = pushed(seen.to(tl.float32), inputs, S)
                documents = pushed(load_document(document_row, now, limit, start, RESETS), documents, S)
                g = given.to(tl.float32)
                ahead = now + 1
                seen = load_inputs(x_row, x_n, initial_row, channel, channels, ahead, limit, live, held, INITIAL, S)
                given = tl.load(g_row + ahead.to(tl.int64) * incoming_n + lane, mask=(ahead < limit) & held, other=0.0)
                y = convolved(gains, inputs, documents, RESETS, S)
                share = tl.sigmoid(y)
                if group < 2 * groups:
                    g = unit_gradient(g, y * share, shortest)
                g = g * share * (1.0 + y * (1.0 - share))
                gradients = pushed(g, gradients, S)
                counted = tl.where(now < end, g, 0.0)
                new = ()
                for lag in tl.static_range(S):
                    new = new + (sums[lag] + counted * same_document(documents, lag, 0, inputs[lag], RESETS),)
                sums = new
                # All that reads the token S - 1 steps ago is known.
                d = gains[0] * gradients[S - 1]
                for lag in tl.static_range(1, S):
                    d += gains[lag] * same_document(documents, S - 1 - lag, S - 1, gradients[S - 1 - lag], RESETS)
                token = now - (S - 1)
                at = (batch * tokens + token) * channels + channel
                tl.store(dx + at, d, mask=(token >= start) & (token < end) & held)
                if INITIAL:
                    at = (batch * (S - 1) + (token + (S - 1))) * channels + channel
                    tl.store(dinitial + at, d, mask=live & (token < 0) & held)
                now = ahead
    shares = to_taps + tl.program_id(1).to(tl.int64) * S * channels
    for lag in tl.static_range(S):
        tl.store(shares + lag * channels + channel, tl.sum(sums[lag], axis=0, keep_dims=True), mask=held)
