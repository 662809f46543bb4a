"""Gradients of scores under a decay per channel. Channels do not meet: a program has some of them, of one chunk.

The decay of a token reaches all pairs of tokens around it, so that its gradient is the sum from it to the chunk's end of
left times its gradient minus right times its gradient; of a probe, which stands before its own token's decay, from the
token behind on. A token with itself is left out of that sum, where it would count twice with opposite signs.
"""

import triton
import triton.language as tl

from .tiles import decay_before, decay_of_blocks, decay_since, decay_until, load_token, load_tokens, product


@triton.jit
def load_scores(gradient, rows, columns, number, other, C: tl.constexpr, DOCUMENTS: tl.constexpr):
    """A tile of a gradient of scores (C, C), zero where the documents `number` and `other` differ."""
    found = tl.load(gradient + rows * C + columns, mask=(rows < C) & (columns < C), other=0.0).to(tl.float32)
    if DOCUMENTS:
        found = tl.where(number == other, found, 0.0)
    return found


@triton.jit
def scores_backward_kernel(
    query, key, decay, probe, insert, document, to_query_key, to_from_start, to_end, to_last, to_query_insert,
    to_probe_key, to_probe_insert, to_probe_start, to_insert_end, to_query, to_key, to_decay, to_probe, to_insert,
    tokens, heads, chunks, query_b, query_n, query_h, key_b, key_n, key_h, decay_b, decay_n, decay_h, probe_b, probe_n,
    probe_h, insert_b, insert_n, insert_h, to_b, to_n, to_h,
    K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, T: tl.constexpr, BLOCKS: tl.constexpr, PARTS: tl.constexpr,
    REMOVES: tl.constexpr, DOCUMENTS: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program for each BK channels of each chunk of each head. Gradients of the results as `scores_kernel` has them,
    contiguous; those of the arguments (B, N, H, K) have common strides."""
    cell = (tl.program_id(0) // PARTS).to(tl.int64)
    lane = tl.program_id(0) % PARTS * BK + tl.arange(0, BK)
    held = lane < K
    chunk = cell % chunks
    h = cell // chunks % heads
    b = cell // chunks // heads
    query += b * query_b + h * query_h
    key += b * key_b + h * key_h
    decay += b * decay_b + h * decay_h
    to = b * to_b + h * to_h
    square, flat = cell * C * C, cell * C * K
    to_query_key += square
    if REMOVES:
        probe += b * probe_b + h * probe_h
        insert += b * insert_b + h * insert_h
        to_query_insert += square
        to_probe_key += square
        to_probe_insert += square
    start = (chunk * C).to(tl.int32)
    end = tl.minimum(start + C, tokens)
    line = tl.arange(0, T)
    number = tl.zeros((T,), tl.int32)
    ending = 0
    if DOCUMENTS:
        document += (b * chunks + chunk) * C
        ending = tl.load(document + C - 1)

    # What decays to the chunk's end reaches the decays behind it: all of it up to the end, less what stands later.
    tail = tl.zeros((BK,), tl.float32)
    behind = tl.zeros((BK,), tl.float32)
    for step in range(0, BLOCKS):
        block = BLOCKS - 1 - step
        first = start + block * T
        own, place = first + line, block * T + line
        until = decay_until(decay, decay_n, own, first, tl.minimum(end, first + T), lane, held)
        falling = tl.exp(until + behind[None, :])
        if DOCUMENTS:
            number = tl.load(document + place, mask=place < C, other=-1)
            falling = tl.where((number == ending)[:, None], falling, 0.0)
        across = flat + lane[None, :] * C + place[:, None]
        inside = (place < C)[:, None] & held[None, :]
        k = load_tokens(key, key_n, own, first, end, lane, held)
        ended = k * tl.load(to_end + across, mask=inside, other=0.0)
        if REMOVES:
            r = load_tokens(insert, insert_n, own, first, end, lane, held)
            ended += r * tl.load(to_insert_end + across, mask=inside, other=0.0)
        tail += tl.sum(ended * falling, axis=0)
        behind += tl.sum(load_tokens(decay, decay_n, own, first, end, lane, held), axis=0)
    whole = tl.exp(behind)
    if DOCUMENTS:
        whole = tl.where(ending == 0, whole, 0.0)
    tail += whole * tl.load(to_last + cell * K + lane, mask=held, other=0.0)

    behind = tl.zeros((BK,), tl.float32)
    for step in range(0, BLOCKS):
        block = BLOCKS - 1 - step
        first = start + block * T
        own, place = first + line, block * T + line
        inside = (place < C)[:, None] & held[None, :]
        before = decay_of_blocks(decay, decay_n, start, first, end, lane, held, T, BK)
        since = decay_since(decay, decay_n, own, first, end, lane, held)
        until = decay_until(decay, decay_n, own, first, tl.minimum(end, first + T), lane, held)
        rising = tl.exp(since + before[None, :])
        falling = tl.exp(until + behind[None, :])
        q = load_tokens(query, query_n, own, first, end, lane, held)
        k = load_tokens(key, key_n, own, first, end, lane, held)
        if DOCUMENTS:
            number = tl.load(document + place, mask=place < C, other=-1)
            rising = tl.where((number == 0)[:, None], rising, 0.0)
            falling = tl.where((number == ending)[:, None], falling, 0.0)
        along = flat + place[:, None] * K + lane[None, :]
        across = flat + lane[None, :] * C + place[:, None]
        dq = tl.load(to_from_start + along, mask=inside, other=0.0) * rising
        dk = tl.load(to_end + across, mask=inside, other=0.0) * falling
        after = q * dq - k * dk  # reaches the decays up to the token's own
        if REMOVES:
            earlier = decay_before(decay, decay_n, own, first, end, lane, held)
            rising_earlier = tl.exp(earlier + before[None, :])
            if DOCUMENTS:
                rising_earlier = tl.where((number == 0)[:, None], rising_earlier, 0.0)
            p = load_tokens(probe, probe_n, own, first, end, lane, held)
            r = load_tokens(insert, insert_n, own, first, end, lane, held)
            dp = tl.load(to_probe_start + along, mask=inside, other=0.0) * rising_earlier
            dr = tl.load(to_insert_end + across, mask=inside, other=0.0) * falling
            sooner = p * dp  # reaches the decays before the token's own
            after -= r * dr

        for level in tl.static_range(2):
            HALF: tl.constexpr = T << level
            if HALF < C:
                half = tl.arange(0, HALF)
                middle = start + block * T // HALF * HALF
                if block * T // HALF % 2 == 1:  # as rows, over the columns of the half before
                    columns = middle - HALF + half
                    half_end = tl.minimum(middle, end)
                    at = columns - start
                    over = number
                    if DOCUMENTS:
                        over = tl.load(document + at)
                    more = decay_of_blocks(decay, decay_n, middle, first, end, lane, held, T, BK)
                    up_to = tl.exp(decay_until(decay, decay_n, columns, middle - HALF, half_end, lane, held))
                    k_until = load_tokens(key, key_n, columns, middle - HALF, half_end, lane, held) * up_to
                    given = load_scores(
                        to_query_key, place[:, None], at[None, :], number[:, None], over[None, :], C, DOCUMENTS
                    )
                    found = product(given, k_until, OPERAND, PRECISION)
                    if REMOVES:
                        r_until = load_tokens(insert, insert_n, columns, middle - HALF, half_end, lane, held) * up_to
                        given = load_scores(
                            to_query_insert, place[:, None], at[None, :], number[:, None], over[None, :], C, DOCUMENTS
                        )
                        found += product(given, r_until, OPERAND, PRECISION)
                    found *= tl.exp(since + more[None, :])
                    dq += found
                    after += q * found
                    if REMOVES:
                        given = load_scores(
                            to_probe_key, place[:, None], at[None, :], number[:, None], over[None, :], C, DOCUMENTS
                        )
                        found = product(given, k_until, OPERAND, PRECISION)
                        given = load_scores(
                            to_probe_insert, place[:, None], at[None, :], number[:, None], over[None, :], C, DOCUMENTS
                        )
                        found += product(given, r_until, OPERAND, PRECISION)
                        found *= tl.exp(earlier + more[None, :])
                        dp += found
                        sooner += p * found
                else:  # as columns, under the rows of the half behind
                    middle += HALF
                    rows = middle + half
                    at = rows - start
                    under = number
                    if DOCUMENTS:
                        under = tl.load(document + at)
                    more = decay_of_blocks(decay, decay_n, first + T, middle, end, lane, held, T, BK)
                    from_middle = tl.exp(decay_since(decay, decay_n, rows, middle, end, lane, held))
                    q_since = load_tokens(query, query_n, rows, middle, end, lane, held) * from_middle
                    given = load_scores(
                        to_query_key, at[None, :], place[:, None], number[:, None], under[None, :], C, DOCUMENTS
                    )
                    found = product(given, q_since, OPERAND, PRECISION)
                    if REMOVES:
                        from_middle = tl.exp(decay_before(decay, decay_n, rows, middle, end, lane, held))
                        p_since = load_tokens(probe, probe_n, rows, middle, end, lane, held) * from_middle
                        given = load_scores(
                            to_probe_key, at[None, :], place[:, None], number[:, None], under[None, :], C, DOCUMENTS
                        )
                        found += product(given, p_since, OPERAND, PRECISION)
                    up_to = tl.exp(until + more[None, :])
                    found *= up_to
                    dk += found
                    after -= k * found
                    if REMOVES:
                        given = load_scores(
                            to_query_insert, at[None, :], place[:, None], number[:, None], under[None, :], C, DOCUMENTS
                        )
                        found = product(given, q_since, OPERAND, PRECISION)
                        given = load_scores(
                            to_probe_insert, at[None, :], place[:, None], number[:, None], under[None, :], C, DOCUMENTS
                        )
                        found += product(given, p_since, OPERAND, PRECISION)
                        found *= up_to
                        dr += found
                        after -= r * found

        # Pairs within the block, as forward: row i of queries and row i + 1 of probes see the same decays.
        passed = tl.zeros((T, BK), tl.float32)
        for i in range(0, T):
            at = block * T + i
            one = load_token(decay, decay_n, first + i, end, lane, held)
            passed = tl.where((line < i)[:, None], passed + one[None, :], 0.0)
            over = tl.where((line <= i)[:, None], tl.exp(passed), 0.0)
            now = load_token(query, query_n, first + i, end, lane, held)[None, :]
            here = tl.zeros((T,), tl.int32)
            if DOCUMENTS:
                here += tl.load(document + at, mask=at < C, other=-2)
            given = load_scores(to_query_key, at, place, number, here, C, DOCUMENTS)[:, None] * over
            mine = given * k
            dk += given * now
            if REMOVES:
                given = load_scores(to_query_insert, at, place, number, here, C, DOCUMENTS)[:, None] * over
                mine += given * r
                dr += given * now
            dq = tl.where((line == i)[:, None], dq + tl.sum(mine, axis=0)[None, :], dq)
            pairs = mine * now
            if REMOVES:
                if i + 1 < T:
                    then = load_token(probe, probe_n, first + i + 1, end, lane, held)[None, :]
                    if DOCUMENTS:
                        here = tl.zeros((T,), tl.int32) + tl.load(document + at + 1, mask=at + 1 < C, other=-2)
                    given = load_scores(to_probe_key, at + 1, place, number, here, C, DOCUMENTS)[:, None] * over
                    mine = given * k
                    dk += given * then
                    given = load_scores(to_probe_insert, at + 1, place, number, here, C, DOCUMENTS)[:, None] * over
                    mine += given * r
                    dr += given * then
                    dp = tl.where((line == i + 1)[:, None], dp + tl.sum(mine, axis=0)[None, :], dp)
                    pairs += mine * then
            pairs = tl.where((line < i)[:, None], pairs, 0.0)
            after += tl.where((line == i)[:, None], tl.sum(pairs, axis=0)[None, :], -pairs)

        d_decay = tl.cumsum(after, axis=0, reverse=True) + tail[None, :]
        tail += tl.sum(after, axis=0)
        if REMOVES:
            d_decay += tl.cumsum(sooner, axis=0, reverse=True) - sooner
            tail += tl.sum(sooner, axis=0)
        behind += tl.sum(load_tokens(decay, decay_n, own, first, end, lane, held), axis=0)
        cells = to + own.to(tl.int64)[:, None] * to_n + lane[None, :]
        inside = (own < end)[:, None] & held[None, :]
        tl.store(to_query + cells, dq.to(to_query.dtype.element_ty), mask=inside)
        tl.store(to_key + cells, dk.to(to_key.dtype.element_ty), mask=inside)
        tl.store(to_decay + cells, d_decay.to(to_decay.dtype.element_ty), mask=inside)
        if REMOVES:
            tl.store(to_probe + cells, dp.to(to_probe.dtype.element_ty), mask=inside)
            tl.store(to_insert + cells, dr.to(to_insert.dtype.element_ty), mask=inside)
