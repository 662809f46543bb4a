"""Scores of one block of tokens with the chunk's tokens up to it, and its tokens decayed from and to the chunk's ends.

Pairs of tokens within a block are taken each with the exponent of its own sum of decays; those of two blocks by matrix
products, relative to the later block's start. Channels are added up BK at a time.
"""

import triton
import triton.language as tl

from .tiles import decay_before, decay_between, decay_of_blocks, decay_since, decay_until, load_tokens, product


@triton.jit
def store_scores(to, found, rows, columns, number, other, C: tl.constexpr, DOCUMENTS: tl.constexpr):
    """A tile of a matrix of scores (C, C), zero where the documents `number` and `other` differ."""
    if DOCUMENTS:
        found = tl.where(number == other, found, 0.0)
    tl.store(to + rows * C + columns, found, mask=(rows < C) & (columns < C))


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
    query += b * query_b + h * query_h + chunk * C * query_n
    key += b * key_b + h * key_h + chunk * C * key_n
    decay += b * decay_b + h * decay_h + chunk * C * decay_n
    square, flat = cell * C * C, cell * C * K
    query_key += square
    if REMOVES:
        probe += b * probe_b + h * probe_h + chunk * C * probe_n
        insert += b * insert_b + h * insert_h + chunk * C * insert_n
        query_insert += square
        probe_key += square
        probe_insert += square
    first = block * T
    end = tl.minimum(tokens - chunk * C, C).to(tl.int32)
    line = tl.arange(0, T)
    place = first + line
    number = tl.zeros((T,), tl.int32)
    ending = 0
    if DOCUMENTS:
        document += (b * chunks + chunk) * C
        number = tl.load(document + place, mask=place < C, other=-1)
        ending = tl.load(document + C - 1)

    # The block with itself. Between a token and itself, or for a probe and the token before its own, nothing decays.
    here = line[:, None] == line[None, :]
    before_it = line[:, None] - 1 == line[None, :]
    qk = tl.zeros((T, T), tl.float32)
    qr = tl.zeros((T, T), tl.float32)
    pk = tl.zeros((T, T), tl.float32)
    pr = tl.zeros((T, T), tl.float32)
    for channel in range(0, K, BK):
        lane = channel + tl.arange(0, BK)
        held = lane < K
        kept = (place < C)[:, None] & held[None, :]
        along = flat + place[:, None] * K + lane[None, :]
        across = flat + lane[None, :] * C + place[:, None]
        before = decay_of_blocks(decay, decay_n, 0, first, end, lane, held, T, BK)
        behind = decay_of_blocks(decay, decay_n, first + T, C, end, lane, held, T, BK)
        since = decay_since(decay, decay_n, place, first, end, lane, held)
        rising = tl.exp(since + before[None, :])
        until = decay_until(decay, decay_n, place, first, end, lane, held, T)
        falling = tl.exp(until + behind[None, :])
        if DOCUMENTS:
            rising = tl.where((number == 0)[:, None], rising, 0.0)
            falling = tl.where((number == ending)[:, None], falling, 0.0)
        k = load_tokens(key, key_n, place, first, end, lane, held)
        q = load_tokens(query, query_n, place, first, end, lane, held)
        tl.store(from_start + along, q * rising, mask=kept)
        tl.store(to_end + across, k * falling, mask=kept)
        if REMOVES:
            r = load_tokens(insert, insert_n, place, first, end, lane, held)
            rising = tl.exp(decay_before(decay, decay_n, place, first, end, lane, held) + before[None, :])
            if DOCUMENTS:
                rising = tl.where((number == 0)[:, None], rising, 0.0)
            p = load_tokens(probe, probe_n, place, first, end, lane, held)
            tl.store(probe_start + along, p * rising, mask=kept)
            tl.store(insert_end + across, r * falling, mask=kept)
        if block == BLOCKS - 1:
            whole = tl.exp(before + tl.sum(load_tokens(decay, decay_n, place, first, end, lane, held), axis=0))
            if DOCUMENTS:
                whole = tl.where(ending == 0, whole, 0.0)
            tl.store(last + cell * K + lane, whole, mask=held)

        over = decay_between(decay, decay_n, place, first, end, lane, held, line, 0) * q[:, None, :]
        qk += tl.sum(over * k[None, :, :], axis=2) + tl.where(here, tl.sum(q * k, axis=1)[:, None], 0.0)
        if REMOVES:
            qr += tl.sum(over * r[None, :, :], axis=2) + tl.where(here, tl.sum(q * r, axis=1)[:, None], 0.0)
            over = decay_between(decay, decay_n, place, first, end, lane, held, line, 1) * p[:, None, :]
            back = load_tokens(key, key_n, place - 1, first, end, lane, held)
            pk += tl.sum(over * k[None, :, :], axis=2) + tl.where(before_it, tl.sum(p * back, axis=1)[:, None], 0.0)
            back = load_tokens(insert, insert_n, place - 1, first, end, lane, held)
            pr += tl.sum(over * r[None, :, :], axis=2) + tl.where(before_it, tl.sum(p * back, axis=1)[:, None], 0.0)
    rows, columns = place[:, None], place[None, :]
    store_scores(query_key, qk, rows, columns, number[:, None], number[None, :], C, DOCUMENTS)
    if REMOVES:
        store_scores(query_insert, qr, rows, columns, number[:, None], number[None, :], C, DOCUMENTS)
        store_scores(probe_key, pk, rows, columns, number[:, None], number[None, :], C, DOCUMENTS)
        store_scores(probe_insert, pr, rows, columns, number[:, None], number[None, :], C, DOCUMENTS)

    # Blocks before it, and zeros for those behind it, whose writes it does not see.
    for other in range(0, BLOCKS):
        if other != block:
            qk = tl.zeros((T, T), tl.float32)
            qr = tl.zeros((T, T), tl.float32)
            pk = tl.zeros((T, T), tl.float32)
            pr = tl.zeros((T, T), tl.float32)
            earlier = other * T
            columns = other * T + line
            if other < block:
                for channel in range(0, K, BK):
                    lane = channel + tl.arange(0, BK)
                    held = lane < K
                    more = decay_of_blocks(decay, decay_n, earlier + T, first, end, lane, held, T, BK)
                    until = decay_until(decay, decay_n, columns, earlier, end, lane, held, T)
                    until = tl.exp(until + more[None, :])
                    k = tl.trans(load_tokens(key, key_n, columns, earlier, end, lane, held) * until)
                    q = load_tokens(query, query_n, place, first, end, lane, held)
                    q *= tl.exp(decay_since(decay, decay_n, place, first, end, lane, held))
                    qk += product(q, k, OPERAND, PRECISION)
                    if REMOVES:
                        r = tl.trans(load_tokens(insert, insert_n, columns, earlier, end, lane, held) * until)
                        p = load_tokens(probe, probe_n, place, first, end, lane, held)
                        p *= tl.exp(decay_before(decay, decay_n, place, first, end, lane, held))
                        qr += product(q, r, OPERAND, PRECISION)
                        pk += product(p, k, OPERAND, PRECISION)
                        pr += product(p, r, OPERAND, PRECISION)
            seen = number
            if DOCUMENTS:
                seen = tl.load(document + columns)
            columns = columns[None, :]
            store_scores(query_key, qk, rows, columns, number[:, None], seen[None, :], C, DOCUMENTS)
            if REMOVES:
                store_scores(query_insert, qr, rows, columns, number[:, None], seen[None, :], C, DOCUMENTS)
                store_scores(probe_key, pk, rows, columns, number[:, None], seen[None, :], C, DOCUMENTS)
                store_scores(probe_insert, pr, rows, columns, number[:, None], seen[None, :], C, DOCUMENTS)
