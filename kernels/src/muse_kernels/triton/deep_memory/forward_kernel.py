"""The weights at every chunk's start, one after the other: a program a row and head.

W and S are kept in float32 in memory that the program alone touches, one matrix of them in registers at a time; what
the chunks' gradients are taken at, and what is read, is W rounded. Source: mathematics §3.
"""

import triton
import triton.language as tl

from .tiles import SMALLEST_SQUARE, newton_schulz, product, taken, tried, within


@triton.jit
def scan_kernel(
    key,
    value,
    factors,
    shares,
    fresh,
    learned,
    weights,
    momentum,
    starts,
    momenta,
    current,
    heads,
    chunks,
    key_b,
    key_h,
    key_t,
    value_b,
    value_h,
    value_t,
    C: tl.constexpr,
    X: tl.constexpr,
    K: tl.constexpr,
    E: tl.constexpr,
    T: tl.constexpr,
    ORTHOGONALISE: tl.constexpr,
    FRESH: tl.constexpr,
    KEEP: tl.constexpr,
):
    """`shares` (B, H, n, 3) are of S in S, of W in W, and of the direction or of S in what W loses; `current` (B, H,
    3, K, E) holds, where documents start inside, the rounded weights that the chunk trains. The first slot of `starts`,
    and `current`, are `weights` rounded."""
    HALF: tl.constexpr = starts.dtype.element_ty
    SIZE: tl.constexpr = K * E
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0).to(tl.int64)
    b, h = row // heads, row % heads
    ks, es, ts = tl.arange(0, K), tl.arange(0, E), tl.arange(0, T)
    wide = ks[:, None] * E + es[None, :]
    tall = es[:, None] + ks[None, :] * E
    own_weights, own_momentum = weights + row * 3 * SIZE, momentum + row * 3 * SIZE
    key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    ONE: tl.constexpr = X <= T
    WAYS: tl.constexpr = 1 if ORTHOGONALISE else 2
    for i in range(chunks):
        anew = i < 0
        if FRESH:
            anew = tl.load(fresh + b * chunks + i) != 0
        slot, following = starts + (i * rows + row) * 3 * SIZE, starts + ((i + 1) * rows + row) * 3 * SIZE
        if FRESH:
            slot = current + row * 3 * SIZE
            if anew:
                for p in range(3):
                    now = tl.load(learned + (h * 3 + p) * SIZE + wide)
                    tl.store(own_weights + p * SIZE + wide, now)
                    tl.store(own_momentum + p * SIZE + wide, tl.zeros((K, E), tl.float32))
                    tl.store(slot + p * SIZE + wide, now.to(HALF))
                tl.debug_barrier()
        own_shares = shares + (row * chunks + i) * 3
        in_momentum, in_weights, lost = tl.load(own_shares), tl.load(own_shares + 1), tl.load(own_shares + 2)
        own_factors = factors + (row * chunks + i) * WAYS * X
        for first in range(0, X, T):
            here = first + ts
            inside = here < X
            at = (i * C + here).to(tl.int64)
            k, kt, v = taken(key, value, at, inside, ks, key_t, value_t)
            factor = tl.load(own_factors + here, mask=inside, other=0.0)
            error, layer, adjoints = tried(k, v, slot, wide, tall, SIZE, HALF)
            hidden, to_opening, to_raised = layer[2], adjoints[1], adjoints[2]
            error_t = tl.trans(error)
            kept = tl.where(first == 0, in_momentum, 1.0)
            if not ORTHOGONALISE:
                entering = tl.load(own_factors + X + here, mask=inside, other=0.0)
                left = tl.where(first == 0, in_weights, 1.0)
                of_momentum = tl.where(first == 0, lost, 0.0)
                for which in tl.static_range(3):
                    if which == 0:
                        gradient = product(kt, to_opening * entering[:, None], HALF)
                    elif which == 1:
                        gradient = product(kt, to_raised * entering[:, None], HALF)
                    else:
                        gradient = product(error_t * entering[None, :], hidden, HALF)
                    place = which * SIZE + wide
                    now = left * tl.load(own_weights + place) - of_momentum * tl.load(own_momentum + place)
                    now -= gradient
                    tl.store(own_weights + place, now)
                    if ONE and i + 1 < chunks:
                        tl.store(following + place, now.to(HALF))
                tl.debug_barrier()
            for which in tl.static_range(3):
                if which == 0:
                    gradient = within(kt, to_opening * factor[:, None], ORTHOGONALISE, HALF)
                elif which == 1:
                    gradient = within(kt, to_raised * factor[:, None], ORTHOGONALISE, HALF)
                else:
                    gradient = within(error_t * factor[None, :], hidden, ORTHOGONALISE, HALF)
                place = which * SIZE + wide
                now = kept * tl.load(own_momentum + place) + gradient
                tl.store(own_momentum + place, now)
                if ONE and KEEP:
                    tl.store(momenta + (i * rows + row) * 3 * SIZE + place, now.to(momenta.dtype.element_ty))
            tl.debug_barrier()
        for p in range(3):
            place = p * SIZE + wide
            if KEEP and not ONE:
                s = tl.load(own_momentum + place)
                tl.store(momenta + (i * rows + row) * 3 * SIZE + place, s.to(momenta.dtype.element_ty))
            if ORTHOGONALISE:
                s = tl.load(own_momentum + place)
                scale = tl.rsqrt(tl.sum(s * s) + SMALLEST_SQUARE)
                x = newton_schulz(s * scale)
                now = in_weights * tl.load(own_weights + place) - lost * x
                tl.store(own_weights + place, now)
                if i + 1 < chunks:
                    tl.store(following + place, now.to(HALF))
                if FRESH:
                    tl.store(current + row * 3 * SIZE + place, now.to(HALF))
            elif FRESH or not ONE:
                now = tl.load(own_weights + place)
                if not ONE and i + 1 < chunks:
                    tl.store(following + place, now.to(HALF))
                if FRESH:
                    tl.store(current + row * 3 * SIZE + place, now.to(HALF))
        tl.debug_barrier()
