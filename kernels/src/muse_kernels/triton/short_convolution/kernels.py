"""Kernels of the short convolution: a program takes T tokens of G channels, the K of one head where those are a query
or a key, whose length it needs.

Channel groups are numbered through: queries, keys, then the values in groups of G. The S - 1 inputs before the first
token come from `initial`. What lies in an earlier document than the token that reads it counts as zero.
"""

import triton
import triton.language as tl


@triton.jit
def load_inputs(
    x, x_n, initial, document, memory, channel, channels, token, reader, tokens, kept, held,
    INITIAL: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """(T, G) float32: the inputs at `token` (T, 1) as seen by `reader` (T, 1), zero where `kept` is false."""
    here = kept & (token >= 0)
    y = tl.load(x + token.to(tl.int64) * x_n + channel, mask=here & held, other=0.0).to(tl.float32)
    if INITIAL:
        before = kept & (token < 0)
        at = (token + memory).to(tl.int64) * channels + channel
        y += tl.load(initial + at, mask=before & held, other=0.0).to(tl.float32)
    if RESETS:
        own = tl.load(document + reader, mask=kept, other=0)
        y = tl.where(tl.load(document + token, mask=here, other=0) == own, y, 0.0)
    return y


@triton.jit
def store_heads(query, key, value, group, groups, start, lane, kept, tile, K: tl.constexpr, M_ALL, G: tl.constexpr):
    """The tile of a group into query, key (.., H K) or value (.., H M); `start` numbers tokens from the first row."""
    if group < groups:
        tl.store(query + start * (groups * K) + group * K + lane, tile, mask=kept & (lane < K))
    elif group < 2 * groups:
        tl.store(key + start * (groups * K) + (group - groups) * K + lane, tile, mask=kept & (lane < K))
    else:
        column = (group - 2 * groups) * G + lane
        tl.store(value + start * M_ALL + column, tile, mask=kept & (column < M_ALL))


@triton.jit
def locate(group, groups, lane, M_ALL, K: tl.constexpr, G: tl.constexpr):
    """First channel of a group, and which of its lanes hold one."""
    is_value = group >= 2 * groups
    first = tl.where(is_value, 2 * groups * K + (group - 2 * groups) * G, group * K)
    limit = tl.where(is_value, M_ALL - (group - 2 * groups) * G, K)
    return first + lane, lane < limit


@triton.jit
def place(groups, blocks, FOLDED: tl.constexpr):
    """Group, block of tokens and row of a program: an axis of the grid each, or all on the first one, in that order."""
    if FOLDED:
        program = tl.program_id(0)
        block = program // groups
        return program % groups, block % blocks, (block // blocks).to(tl.int64)
    else:
        return tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)


@triton.jit
def short_convolution_kernel(
    x, x_b, x_n, taps, initial, document, query, key, value, tokens, groups, M_ALL, shortest,
    INITIAL: tl.constexpr, RESETS: tl.constexpr, S: tl.constexpr, K: tl.constexpr, T: tl.constexpr, G: tl.constexpr,
    FOLDED: tl.constexpr,
):  # fmt: skip
    """Queries, keys (B, N, H K) and values (B, N, H M), contiguous; `groups` is H, M_ALL is H M."""
    group, block, batch = place(2 * groups + tl.cdiv(M_ALL, G), tl.cdiv(tokens, T), FOLDED)
    lane = tl.arange(0, G)[None, :]
    channels = 2 * groups * K + M_ALL
    channel, held = locate(group, groups, lane, M_ALL, K, G)
    now = block * T + tl.arange(0, T)[:, None]
    kept = now < tokens
    x += batch * x_b
    if INITIAL:
        initial += batch * (S - 1) * channels
    if RESETS:
        document += batch * tokens
    y = tl.zeros((T, G), tl.float32)
    for lag in tl.static_range(S):
        seen = load_inputs(
            x, x_n, initial, document, S - 1, channel, channels, now - lag, now, tokens, kept, held, INITIAL, RESETS
        )
        y += tl.load(taps + lag * channels + channel, mask=held, other=0.0).to(tl.float32) * seen
    y = y * tl.sigmoid(y)
    if group < 2 * groups:
        y = y * (1.0 / tl.maximum(tl.sqrt(tl.sum(y * y, axis=1, keep_dims=True)), shortest))
    store_heads(query, key, value, group, groups, batch * tokens + now, lane, kept, y, K, M_ALL, G)


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
def load_walked(
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
def same_document(documents, LAG: tl.constexpr, READER: tl.constexpr, value, RESETS: tl.constexpr):
    """value where the tokens LAG and READER steps ago are of one document, else zero."""
    if RESETS:
        return tl.where(documents[LAG] == documents[READER], value, 0.0)
    else:
        return value


@triton.jit
def pushed(new, ring, S: tl.constexpr):
    """The ring with `new` in front and without its last."""
    found = (new,)
    for k in tl.static_range(S - 1):
        found = found + (ring[k],)
    return found


@triton.jit
def short_convolution_backward_kernel(
    x, x_b, x_n, taps, initial, document, to_query, query_b, query_n, to_key, key_b, key_n, to_value, value_b, value_n,
    dx, dinitial, to_taps, tokens, rows, stretches, length, groups, M_ALL, shortest,
    INITIAL: tl.constexpr, RESETS: tl.constexpr, S: tl.constexpr, K: tl.constexpr, T: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """dx (B, N, C) contiguous, dinitial (B, S - 1, C), and the taps' gradient by shares, (programs, S, C).

    A program walks through T stretches of `length` tokens side by side, a token of each at a time, and keeps what the
    last S tokens were and gave; so x and the gradients are read once. `stretches` of them make up a row. A stretch
    begins with the S - 1 tokens before it, whose inputs its first ones read, and ends with the S - 1 behind it, whose
    gradients reach its last ones. The numbers of the next token are on their way while those of one are used.
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
    gains, sums = (), ()
    for lag in tl.static_range(S):
        gains = gains + (tl.load(taps + lag * channels + channel, mask=held, other=0.0).to(tl.float32),)
        sums = sums + (tl.zeros((T, G), tl.float32),)
    for block in range(tl.program_id(1), tl.cdiv(rows * stretches, T), tl.num_programs(1)):
        number = block * T + tl.arange(0, T)[:, None]
        live = number < rows * stretches
        batch = (number // stretches).to(tl.int64)
        start = number % stretches * length
        end = tl.where(live, tl.minimum(start + length, tokens), start)
        limit = tl.where(live, tl.minimum(start + (length + S - 1), tokens), 0)
        x_row, g_row = x + batch * x_b, incoming + batch * incoming_b + column
        initial_row, document_row = initial, document
        if INITIAL:
            initial_row = initial + batch * ((S - 1) * channels)
        if RESETS:
            document_row = document + batch * tokens
        inputs, gradients, documents = (), (), ()
        for _ in tl.static_range(S):
            inputs = inputs + (tl.zeros((T, G), tl.float32),)
            gradients = gradients + (tl.zeros((T, G), tl.float32),)
            documents = documents + (tl.zeros((T, 1), tl.int32),)
        now = start - (S - 1)
        seen = load_walked(x_row, x_n, initial_row, channel, channels, now, limit, live, held, INITIAL, S)
        given = tl.load(g_row + now.to(tl.int64) * incoming_n + lane, mask=(now >= start) & (now < limit) & held, other=0.0)
        # S tokens at a time, so that the ring comes round and nothing moves between registers.
        for _ in range(0, tl.cdiv(length + 2 * (S - 1), S)):
            for _ in tl.static_range(S):
                inputs = pushed(seen.to(tl.float32), inputs, S)
                g = given.to(tl.float32)
                ahead = now + 1
                seen = load_walked(x_row, x_n, initial_row, channel, channels, ahead, limit, live, held, INITIAL, S)
                given = tl.load(
                    g_row + ahead.to(tl.int64) * incoming_n + lane, mask=(ahead >= start) & (ahead < limit) & held, other=0.0
                )
                if RESETS:
                    own = tl.load(document_row + now, mask=(now >= 0) & (now < limit), other=0)
                    documents = pushed(own, documents, S)
                y = gains[0] * inputs[0]
                for lag in tl.static_range(1, S):
                    y += gains[lag] * same_document(documents, lag, 0, inputs[lag], RESETS)
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
                    tl.store(dinitial + at, d, mask=live & (token < 0) & (token > -S) & held)
                now = ahead
    shares = to_taps + tl.program_id(1).to(tl.int64) * S * channels
    for lag in tl.static_range(S):
        tl.store(shares + lag * channels + channel, tl.sum(sums[lag], axis=0, keep_dims=True), mask=held)
