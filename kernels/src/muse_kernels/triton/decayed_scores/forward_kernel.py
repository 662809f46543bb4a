"""Scores of one block of tokens with the chunk's tokens up to it, and its tokens decayed from and to the chunk's ends.

Pairs of tokens within a block are taken one row at a time, with the exponent of their own sum of decays; those of
different blocks by matrix products over halves of the chunk and of its halves, relative to the middle.
"""

import triton
import triton.language as tl

from .tiles import decay_before, decay_of_blocks, decay_since, decay_until, load_token, load_tokens, product


@triton.jit
def scores_kernel(
    query, key, decay, probe, insert, document, query_key, from_start, to_end, last, query_insert, probe_key,
    probe_insert, probe_start, insert_end, tokens, heads, chunks, query_b, query_n, query_h, key_b, key_n, key_h,
    decay_b, decay_n, decay_h, probe_b, probe_n, probe_h, insert_b, insert_n, insert_h,
    K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, T: tl.constexpr, BLOCKS: tl.constexpr, REMOVES: tl.constexpr,
    DOCUMENTS: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program for each block of each chunk of each head. Scores (B, H, n, C, C); from the start (B, H, n, C, K); to
    the end (B, H, n, K, C); last (B, H, n, K); document (B, n, C)."""
    cell = (tl.program_id(0) // BLOCKS).to(tl.int64)
    block = tl.program_id(0) % BLOCKS
    chunk = cell % chunks
    h = cell // chunks % heads
    b = cell // chunks // heads
    query += b * query_b + h * query_h
    key += b * key_b + h * key_h
    decay += b * decay_b + h * decay_h
    square, flat = cell * C * C, cell * C * K
    if REMOVES:
        probe += b * probe_b + h * probe_h
        insert += b * insert_b + h * insert_h
    start = (chunk * C).to(tl.int32)
    first = start + block * T
    end = tl.minimum(start + C, tokens)
    line = tl.arange(0, T)
    own = first + line
    place = block * T + line
    lane = tl.arange(0, BK)
    held = lane < K
    kept = (place < C)[:, None] & held[None, :]

    before = decay_of_blocks(decay, decay_n, start, first, end, lane, held, T, BK)
    behind = decay_of_blocks(decay, decay_n, first + T, start + C, end, lane, held, T, BK)
    since = decay_since(decay, decay_n, own, first, end, lane, held)
    until = decay_until(decay, decay_n, own, first, tl.minimum(end, first + T), lane, held)
    rising = tl.exp(since + before[None, :])
    falling = tl.exp(until + behind[None, :])
    q = load_tokens(query, query_n, own, first, end, lane, held)
    k = load_tokens(key, key_n, own, first, end, lane, held)
    if REMOVES:
        earlier = decay_before(decay, decay_n, own, first, end, lane, held)
        rising_earlier = tl.exp(earlier + before[None, :])
        p = load_tokens(probe, probe_n, own, first, end, lane, held)
        r = load_tokens(insert, insert_n, own, first, end, lane, held)
    number = tl.zeros((T,), tl.int32)
    if DOCUMENTS:
        document += (b * chunks + chunk) * C
        number = tl.load(document + place, mask=place < C, other=-1)
        ending = tl.load(document + C - 1)
        rising = tl.where((number == 0)[:, None], rising, 0.0)
        falling = tl.where((number == ending)[:, None], falling, 0.0)
        if REMOVES:
            rising_earlier = tl.where((number == 0)[:, None], rising_earlier, 0.0)

    along = flat + place[:, None] * K + lane[None, :]
    across = flat + lane[None, :] * C + place[:, None]
    tl.store(from_start + along, q * rising, mask=kept)
    tl.store(to_end + across, k * falling, mask=kept)
    if REMOVES:
        tl.store(probe_start + along, p * rising_earlier, mask=kept)
        tl.store(insert_end + across, r * falling, mask=kept)
    if block == BLOCKS - 1:
        whole = tl.exp(before + tl.sum(load_tokens(decay, decay_n, own, first, end, lane, held), axis=0))
        if DOCUMENTS:
            whole = tl.where(ending == 0, whole, 0.0)
        tl.store(last + cell * K + lane, whole, mask=held)

    # Tokens behind the block, whose writes it does not see.
    for late in range(block + 1, BLOCKS):
        cells = square + place[:, None] * C + late * T + line[None, :]
        nothing = tl.zeros((T, T), tl.float32)
        tl.store(query_key + cells, nothing)
        if REMOVES:
            tl.store(query_insert + cells, nothing)
            tl.store(probe_key + cells, nothing)
            tl.store(probe_insert + cells, nothing)

    # Tokens of the half before the block's, at each size of halves.
    for level in tl.static_range(2):
        HALF: tl.constexpr = T << level
        if HALF < C:
            if block * T // HALF % 2 == 1:
                middle = start + block * T // HALF * HALF
                columns = middle - HALF + tl.arange(0, HALF)
                half_end = tl.minimum(middle, end)
                more = decay_of_blocks(decay, decay_n, middle, first, end, lane, held, T, BK)
                up_to = tl.exp(decay_until(decay, decay_n, columns, middle - HALF, half_end, lane, held))
                seen = tl.full((T, HALF), True, tl.int1)
                if DOCUMENTS:
                    seen = number[:, None] == tl.load(document + columns - start)[None, :]
                cells = square + place[:, None] * C + (columns - start)[None, :]
                q_since = q * tl.exp(since + more[None, :])
                k_until = tl.trans(load_tokens(key, key_n, columns, middle - HALF, half_end, lane, held) * up_to)
                tl.store(query_key + cells, tl.where(seen, product(q_since, k_until, OPERAND, PRECISION), 0.0))
                if REMOVES:
                    p_since = p * tl.exp(earlier + more[None, :])
                    r_until = load_tokens(insert, insert_n, columns, middle - HALF, half_end, lane, held) * up_to
                    r_until = tl.trans(r_until)
                    tl.store(query_insert + cells, tl.where(seen, product(q_since, r_until, OPERAND, PRECISION), 0.0))
                    tl.store(probe_key + cells, tl.where(seen, product(p_since, k_until, OPERAND, PRECISION), 0.0))
                    tl.store(probe_insert + cells, tl.where(seen, product(p_since, r_until, OPERAND, PRECISION), 0.0))

    # Tokens of the block: the decays from each up to token i; the probe of the token behind i sees the same.
    passed = tl.zeros((T, BK), tl.float32)
    if REMOVES:
        row = square + block * T * C + place
        tl.store(probe_key + row, tl.zeros((T,), tl.float32), mask=place < C)
        tl.store(probe_insert + row, tl.zeros((T,), tl.float32), mask=place < C)
    for i in range(0, T):
        at = block * T + i
        step = load_token(decay, decay_n, first + i, end, lane, held)
        passed = tl.where((line < i)[:, None], passed + step[None, :], 0.0)
        over = tl.where((line <= i)[:, None], tl.exp(passed), 0.0)
        k_over = k * over
        now = load_token(query, query_n, first + i, end, lane, held)
        seen = place < C
        if DOCUMENTS:
            seen = number == tl.load(document + at, mask=at < C, other=-2)
        cells = square + at * C + place
        inside = (place < C) & (at < C)
        found = tl.sum(k_over * now[None, :], axis=1)
        tl.store(query_key + cells, tl.where(seen, found, 0.0), mask=inside)
        if REMOVES:
            r_over = r * over
            found = tl.sum(r_over * now[None, :], axis=1)
            tl.store(query_insert + cells, tl.where(seen, found, 0.0), mask=inside)
            if DOCUMENTS:
                seen = number == tl.load(document + at + 1, mask=at + 1 < C, other=-2)
            inside = (place < C) & (at + 1 < C) & (i + 1 < T)
            behind_it = load_token(probe, probe_n, first + i + 1, end, lane, held)
            found = tl.sum(k_over * behind_it[None, :], axis=1)
            tl.store(probe_key + cells + C, tl.where(seen, found, 0.0), mask=inside)
            found = tl.sum(r_over * behind_it[None, :], axis=1)
            tl.store(probe_insert + cells + C, tl.where(seen, found, 0.0), mask=inside)
