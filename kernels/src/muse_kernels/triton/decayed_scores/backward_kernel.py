"""Gradients of scores under a decay per channel. Channels do not meet: a program has some of them, of one chunk.

The decay of a token reaches all pairs of tokens around it, so that its gradient is the sum, from it to the chunk's end,
of left times its gradient minus right times its gradient; of a probe, which stands before its own token's decay, from
the token behind on. A token with itself is left out of that sum, where it would count twice with opposite signs.
"""

import triton
import triton.language as tl

from .tiles import decay_before, decay_between, decay_of_blocks, decay_since, decay_until, load_tokens, product


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
    query += b * query_b + h * query_h + chunk * C * query_n
    key += b * key_b + h * key_h + chunk * C * key_n
    decay += b * decay_b + h * decay_h + chunk * C * decay_n
    to = b * to_b + h * to_h + chunk * C * to_n
    square, flat = cell * C * C, cell * C * K
    to_query_key += square
    if REMOVES:
        probe += b * probe_b + h * probe_h + chunk * C * probe_n
        insert += b * insert_b + h * insert_h + chunk * C * insert_n
        to_query_insert += square
        to_probe_key += square
        to_probe_insert += square
    end = tl.minimum(tokens - chunk * C, C).to(tl.int32)
    line = tl.arange(0, T)
    here = line[:, None] == line[None, :]
    before_it = line[:, None] - 1 == line[None, :]
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
        first = block * T
        place = first + line
        until = decay_until(decay, decay_n, place, first, end, lane, held, T)
        falling = tl.exp(until + behind[None, :])
        if DOCUMENTS:
            number = tl.load(document + place, mask=place < C, other=-1)
            falling = tl.where((number == ending)[:, None], falling, 0.0)
        across = flat + lane[None, :] * C + place[:, None]
        inside = (place < C)[:, None] & held[None, :]
        k = load_tokens(key, key_n, place, first, end, lane, held)
        ended = k * tl.load(to_end + across, mask=inside, other=0.0)
        if REMOVES:
            r = load_tokens(insert, insert_n, place, first, end, lane, held)
            ended += r * tl.load(to_insert_end + across, mask=inside, other=0.0)
        tail += tl.sum(ended * falling, axis=0)
        behind += tl.sum(load_tokens(decay, decay_n, place, first, end, lane, held), axis=0)
    whole = tl.exp(behind)
    if DOCUMENTS:
        whole = tl.where(ending == 0, whole, 0.0)
    tail += whole * tl.load(to_last + cell * K + lane, mask=held, other=0.0)

    behind = tl.zeros((BK,), tl.float32)
    for step in range(0, BLOCKS):
        block = BLOCKS - 1 - step
        first = block * T
        place = first + line
        inside = (place < C)[:, None] & held[None, :]
        before = decay_of_blocks(decay, decay_n, 0, first, end, lane, held, T, BK)
        since = decay_since(decay, decay_n, place, first, end, lane, held)
        until = decay_until(decay, decay_n, place, first, end, lane, held, T)
        rising = tl.exp(since + before[None, :])
        falling = tl.exp(until + behind[None, :])
        q = load_tokens(query, query_n, place, first, end, lane, held)
        k = load_tokens(key, key_n, place, first, end, lane, held)
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
            earlier = decay_before(decay, decay_n, place, first, end, lane, held)
            rising_earlier = tl.exp(earlier + before[None, :])
            if DOCUMENTS:
                rising_earlier = tl.where((number == 0)[:, None], rising_earlier, 0.0)
            p = load_tokens(probe, probe_n, place, first, end, lane, held)
            r = load_tokens(insert, insert_n, place, first, end, lane, held)
            dp = tl.load(to_probe_start + along, mask=inside, other=0.0) * rising_earlier
            dr = tl.load(to_insert_end + across, mask=inside, other=0.0) * falling
            sooner = p * dp  # reaches the decays before the token's own
            after -= r * dr

        else:
            earlier, p, r, dp, dr, sooner = since, q, k, dq, dk, after  # which nobody reads
        # Blocks before it, which it reads, and behind it, which read it; relative to its start and to its end.
        rising, falling = tl.exp(since), tl.exp(until)
        rising_earlier = tl.exp(earlier)
        for other in range(0, BLOCKS):
            if other != block:
                begin = other * T
                at = other * T + line
                there = number
                if DOCUMENTS:
                    there = tl.load(document + at)
                number_here, there = number[:, None], there[None, :]
                if other < block:
                    more = decay_of_blocks(decay, decay_n, begin + T, first, end, lane, held, T, BK)
                    over = decay_until(decay, decay_n, at, begin, end, lane, held, T)
                    over = tl.exp(over + more[None, :])
                    seen = load_tokens(key, key_n, at, begin, end, lane, held) * over
                    given = load_scores(to_query_key, place[:, None], at[None, :], number_here, there, C, DOCUMENTS)
                    found = product(given, seen, OPERAND, PRECISION)
                    if REMOVES:
                        given = load_scores(to_probe_key, place[:, None], at[None, :], number_here, there, C, DOCUMENTS)
                        found_probe = product(given, seen, OPERAND, PRECISION)
                        seen = load_tokens(insert, insert_n, at, begin, end, lane, held) * over
                        given = load_scores(
                            to_query_insert, place[:, None], at[None, :], number_here, there, C, DOCUMENTS
                        )
                        found += product(given, seen, OPERAND, PRECISION)
                        given = load_scores(
                            to_probe_insert, place[:, None], at[None, :], number_here, there, C, DOCUMENTS
                        )
                        found_probe = (found_probe + product(given, seen, OPERAND, PRECISION)) * rising_earlier
                        dp += found_probe
                        sooner += p * found_probe
                    found *= rising
                    dq += found
                    after += q * found
                else:
                    more = decay_of_blocks(decay, decay_n, first + T, begin, end, lane, held, T, BK)
                    over = tl.exp(decay_since(decay, decay_n, at, begin, end, lane, held) + more[None, :])
                    seen = load_tokens(query, query_n, at, begin, end, lane, held) * over
                    given = load_scores(to_query_key, at[None, :], place[:, None], number_here, there, C, DOCUMENTS)
                    found = product(given, seen, OPERAND, PRECISION)
                    if REMOVES:
                        given = load_scores(
                            to_query_insert, at[None, :], place[:, None], number_here, there, C, DOCUMENTS
                        )
                        found_insert = product(given, seen, OPERAND, PRECISION)
                        over = tl.exp(decay_before(decay, decay_n, at, begin, end, lane, held) + more[None, :])
                        seen = load_tokens(probe, probe_n, at, begin, end, lane, held) * over
                        given = load_scores(to_probe_key, at[None, :], place[:, None], number_here, there, C, DOCUMENTS)
                        found += product(given, seen, OPERAND, PRECISION)
                        given = load_scores(
                            to_probe_insert, at[None, :], place[:, None], number_here, there, C, DOCUMENTS
                        )
                        found_insert = (found_insert + product(given, seen, OPERAND, PRECISION)) * falling
                        dr += found_insert
                        after -= r * found_insert
                    found *= falling
                    dk += found
                    after -= k * found

        # Pairs within the block, those between which something decays first.
        number_here, there = number[:, None], number[None, :]
        over = decay_between(decay, decay_n, place, first, end, lane, held, line, 0)
        given = load_scores(to_query_key, place[:, None], place[None, :], number_here, there, C, DOCUMENTS)
        mine = given[:, :, None] * k[None, :, :]
        to_k = tl.sum(over * (given[:, :, None] * q[:, None, :]), axis=0)
        itself = tl.sum(tl.where(here, given, 0.0), axis=1)[:, None]
        dq += itself * k
        dk += itself * q + to_k
        after -= k * to_k
        if REMOVES:
            given = load_scores(to_query_insert, place[:, None], place[None, :], number_here, there, C, DOCUMENTS)
            mine += given[:, :, None] * r[None, :, :]
            to_r = tl.sum(over * (given[:, :, None] * q[:, None, :]), axis=0)
            itself = tl.sum(tl.where(here, given, 0.0), axis=1)[:, None]
            dq += itself * r
            dr += itself * q + to_r
            after -= r * to_r
        to_q = tl.sum(over * mine, axis=1)
        dq += to_q
        after += q * to_q
        if REMOVES:
            over = decay_between(decay, decay_n, place, first, end, lane, held, line, 1)
            given = load_scores(to_probe_key, place[:, None], place[None, :], number_here, there, C, DOCUMENTS)
            mine = given[:, :, None] * k[None, :, :]
            to_k = tl.sum(over * (given[:, :, None] * p[:, None, :]), axis=0)
            next_p = load_tokens(probe, probe_n, place + 1, first, tl.minimum(end, first + T), lane, held)
            dp += tl.sum(tl.where(before_it, given, 0.0), axis=1)[:, None] * load_tokens(
                key, key_n, place - 1, first, end, lane, held
            )
            dk += tl.sum(tl.where(before_it, given, 0.0), axis=0)[:, None] * next_p + to_k
            after -= k * to_k
            given = load_scores(to_probe_insert, place[:, None], place[None, :], number_here, there, C, DOCUMENTS)
            mine += given[:, :, None] * r[None, :, :]
            to_r = tl.sum(over * (given[:, :, None] * p[:, None, :]), axis=0)
            dp += tl.sum(tl.where(before_it, given, 0.0), axis=1)[:, None] * load_tokens(
                insert, insert_n, place - 1, first, end, lane, held
            )
            dr += tl.sum(tl.where(before_it, given, 0.0), axis=0)[:, None] * next_p + to_r
            after -= r * to_r
            to_p = tl.sum(over * mine, axis=1)
            dp += to_p
            sooner += p * to_p

        d_decay = tl.cumsum(after, axis=0, reverse=True) + tail[None, :]
        tail += tl.sum(after, axis=0)
        if REMOVES:
            d_decay += tl.cumsum(sooner, axis=0, reverse=True) - sooner
            tail += tl.sum(sooner, axis=0)
        behind += tl.sum(load_tokens(decay, decay_n, place, first, end, lane, held), axis=0)
        cells = to + (place[:, None] * to_n + lane[None, :])
        inside = (place < end)[:, None] & held[None, :]
        tl.store(to_query + cells, dq.to(to_query.dtype.element_ty), mask=inside)
        tl.store(to_key + cells, dk.to(to_key.dtype.element_ty), mask=inside)
        tl.store(to_decay + cells, d_decay.to(to_decay.dtype.element_ty), mask=inside)
        if REMOVES:
            tl.store(to_probe + cells, dp.to(to_probe.dtype.element_ty), mask=inside)
            tl.store(to_insert + cells, dr.to(to_insert.dtype.element_ty), mask=inside)
