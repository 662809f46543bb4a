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
def convolved_gradient_kernel(
    x, x_b, x_n, taps, initial, document, to_query, query_b, query_n, to_key, key_b, key_n, to_value, value_b, value_n,
    to_convolved, to_taps, tokens, blocks, groups, M_ALL, shortest,
    INITIAL: tl.constexpr, RESETS: tl.constexpr, S: tl.constexpr, K: tl.constexpr, T: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Gradient of what the convolution gave, (B, N, C) contiguous, and the taps' by shares, (programs, S, C).

    A program takes every so many blocks of T tokens; `blocks` counts those of all rows.
    """
    group = tl.program_id(0)
    lane = tl.arange(0, G)[None, :]
    channels = 2 * groups * K + M_ALL
    channel, held = locate(group, groups, lane, M_ALL, K, G)
    per_row = tl.cdiv(tokens, T)
    sums = ()
    for _ in tl.static_range(S):
        sums = sums + (tl.zeros((T, G), tl.float32),)
    for block in range(tl.program_id(1), blocks, tl.num_programs(1)):
        batch = (block // per_row).to(tl.int64)
        now = (block % per_row) * T + tl.arange(0, T)[:, None]
        kept = now < tokens
        row_initial, row_document = initial, document
        if INITIAL:
            row_initial = initial + batch * (S - 1) * channels
        if RESETS:
            row_document = document + batch * tokens
        inputs = ()
        y = tl.zeros((T, G), tl.float32)
        for lag in tl.static_range(S):
            seen = load_inputs(
                x + batch * x_b, x_n, row_initial, row_document, S - 1, channel, channels, now - lag, now, tokens, kept,
                held, INITIAL, RESETS,
            )  # fmt: skip
            inputs = inputs + (seen,)
            y += tl.load(taps + lag * channels + channel, mask=held, other=0.0).to(tl.float32) * seen
        share = tl.sigmoid(y)
        opened = y * share
        at = now.to(tl.int64)
        inside = kept & held
        if group < groups:
            g = tl.load(to_query + batch * query_b + at * query_n + group * K + lane, mask=inside, other=0.0)
            g = unit_gradient(g.to(tl.float32), opened, shortest)
        elif group < 2 * groups:
            g = tl.load(to_key + batch * key_b + at * key_n + (group - groups) * K + lane, mask=inside, other=0.0)
            g = unit_gradient(g.to(tl.float32), opened, shortest)
        else:
            column = (group - 2 * groups) * G + lane
            g = tl.load(to_value + batch * value_b + at * value_n + column, mask=inside, other=0.0).to(tl.float32)
        g = g * share * (1.0 + y * (1.0 - share))
        tl.store(to_convolved + (batch * tokens + at) * channels + channel, g, mask=inside)
        new = ()
        for lag in tl.static_range(S):
            new = new + (sums[lag] + g * inputs[lag],)
        sums = new
    shares = to_taps + tl.program_id(1).to(tl.int64) * S * channels
    for lag in tl.static_range(S):
        tl.store(shares + lag * channels + channel, tl.sum(sums[lag], axis=0, keep_dims=True), mask=held)


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
def shifted_gradient_kernel(
    to_convolved, taps, document, dx, dinitial, tokens, channels,
    INITIAL: tl.constexpr, RESETS: tl.constexpr, S: tl.constexpr, T: tl.constexpr, G: tl.constexpr,
    FOLDED: tl.constexpr,
):  # fmt: skip
    """dx_t = sum of taps_lag times the gradient at t + lag; tokens before the first one are those of `initial`."""
    rows = tokens
    if INITIAL:
        rows += S - 1
    group, block, batch = place(tl.cdiv(channels, G), tl.cdiv(rows, T), FOLDED)
    channel = group * G + tl.arange(0, G)[None, :]
    now = block * T + tl.arange(0, T)[:, None]
    if INITIAL:
        now -= S - 1
    held = channel < channels
    to_convolved += batch * tokens * channels
    own = tl.zeros((T, 1), tl.int32)
    if RESETS:
        document += batch * tokens
        own = tl.load(document + now, mask=(now >= 0) & (now < tokens), other=0)
    d = tl.zeros((T, G), tl.float32)
    for lag in tl.static_range(S):
        reader = now + lag
        kept = (reader >= 0) & (reader < tokens)
        if RESETS:
            kept = kept & (tl.load(document + reader, mask=kept, other=0) == own)
        g = tl.load(to_convolved + reader.to(tl.int64) * channels + channel, mask=kept & held, other=0.0)
        d += tl.load(taps + lag * channels + channel, mask=held, other=0.0).to(tl.float32) * g.to(tl.float32)
    at = batch * tokens * channels + now.to(tl.int64) * channels + channel
    tl.store(dx + at, d, mask=(now >= 0) & (now < tokens) & held)
    if INITIAL:
        at = batch * (S - 1) * channels + (now + S - 1).to(tl.int64) * channels + channel
        tl.store(dinitial + at, d, mask=(now < 0) & held)
