"""The weights at every chunk's start, one after the other: a program a row and head.

S is kept in float32 in memory that the program alone touches; so is W where Newton-Schulz takes the registers, which
hold it otherwise. What the chunks' gradients are taken at, and what is read, is W rounded. Source: mathematics §3.
"""

import triton
import triton.language as tl

from .tiles import SMALLEST_SQUARE, added, alike, fine, loaded, newton_schulz, product, stored, taken, tried


@triton.jit
def trained(
    w,
    x,
    y,
    factor,
    entering,
    left,
    of_momentum,
    kept,
    momentum,
    momenta,
    KEEP: tl.constexpr,
    LOADED: tl.constexpr,
    HALF: tl.constexpr,
):
    """A matrix of W after a tile whose gradients are x y per unit of the factors; that of S, in `momentum`, too."""
    s = alike(tl.load(momentum), w, left)
    w = left * w - of_momentum * s
    if LOADED:
        w = added(w, x, -y * entering, HALF)
        s = added(kept * s, x, y * factor, HALF)
    else:
        w -= product(x, y * entering, HALF)
        s = kept * s + product(x, y * factor, HALF)
    tl.store(momentum, s)
    if KEEP:
        tl.store(momenta, s.to(momenta.dtype.element_ty))
    return w


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
    own_weights, own_momentum = weights + row * 3 * SIZE, momentum + row * 3 * SIZE
    key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    ONE: tl.constexpr = X <= T
    DIRECT: tl.constexpr = ONE and not ORTHOGONALISE  # the gradients' weights are in registers, not in their slot
    WAYS: tl.constexpr = 1 if ORTHOGONALISE else 2
    if not ORTHOGONALISE:
        gate, up, down = loaded(own_weights, wide, SIZE)
    for i in range(chunks):
        own = (i * rows + row) * 3 * SIZE
        anew = i < 0
        if FRESH:
            anew = tl.load(fresh + b * chunks + i) != 0
        slot, following = starts + own, starts + ((i + 1) * rows + row) * 3 * SIZE
        if FRESH:
            slot = current + row * 3 * SIZE
            if anew:
                for p in range(3):
                    now = tl.load(learned + (h * 3 + p) * SIZE + wide)
                    tl.store(own_weights + p * SIZE + wide, now)
                    tl.store(own_momentum + p * SIZE + wide, tl.zeros((K, E), tl.float32))
                    tl.store(slot + p * SIZE + wide, now.to(HALF))
                tl.debug_barrier()
                if not ORTHOGONALISE:
                    gate, up, down = loaded(own_weights, wide, SIZE)
        own_shares = shares + (row * chunks + i) * 3
        in_momentum, in_weights, lost = tl.load(own_shares), tl.load(own_shares + 1), tl.load(own_shares + 2)
        own_factors = factors + (row * chunks + i) * WAYS * X
        for first in range(0, X, T):
            here = first + ts
            inside = here < X
            at = (i * C + here).to(tl.int64)
            k, kt, v = taken(key, value, at, inside, ks, key_t, value_t)
            factor = tl.load(own_factors + here, mask=inside, other=0.0)
            if DIRECT:
                error, layer, adjoints = tried(k, v, gate.to(HALF), up.to(HALF), down.to(HALF), HALF)
            else:
                of_gate, of_up, of_down = loaded(slot, wide, SIZE)
                error, layer, adjoints = tried(k, v, of_gate, of_up, of_down, HALF)
            hidden, to_opening, to_raised = layer[2], adjoints[1], adjoints[2]
            error_t = tl.trans(error)
            kept = tl.where(first == 0, in_momentum, 1.0)
            if ORTHOGONALISE:
                for which in tl.static_range(3):
                    if which == 0:
                        gradient = fine(kt.to(tl.float32), to_opening * factor[:, None])
                    elif which == 1:
                        gradient = fine(kt.to(tl.float32), to_raised * factor[:, None])
                    else:
                        gradient = fine(error_t * factor[None, :], hidden)
                    place = which * SIZE + wide
                    now = kept * tl.load(own_momentum + place) + gradient
                    tl.store(own_momentum + place, now)
                    if ONE and KEEP:
                        tl.store(momenta + own + place, now)
            else:
                factor = factor[:, None]
                entering = tl.load(own_factors + X + here, mask=inside, other=0.0)[:, None]
                left = tl.where(first == 0, in_weights, 1.0)
                of_momentum = tl.where(first == 0, lost, 0.0)
                gate = trained(
                    gate, kt, to_opening, factor, entering, left, of_momentum, kept, own_momentum + wide,
                    momenta + own + wide, ONE and KEEP, True, HALF,
                )  # fmt: skip
                up = trained(
                    up, kt, to_raised, factor, entering, left, of_momentum, kept, own_momentum + SIZE + wide,
                    momenta + own + SIZE + wide, ONE and KEEP, True, HALF,
                )  # fmt: skip
                down = trained(
                    down, error_t, hidden, factor, entering, left, of_momentum, kept, own_momentum + 2 * SIZE + wide,
                    momenta + own + 2 * SIZE + wide, ONE and KEEP, False, HALF,
                )  # fmt: skip
            tl.debug_barrier()
        if KEEP and not ONE:
            for p in range(3):
                s = tl.load(own_momentum + p * SIZE + wide)
                tl.store(momenta + own + p * SIZE + wide, s.to(momenta.dtype.element_ty))
        if ORTHOGONALISE:
            for p in range(3):
                place = p * SIZE + wide
                s = tl.load(own_momentum + place)
                scale = tl.rsqrt(tl.sum(s * s) + SMALLEST_SQUARE)
                x = newton_schulz(s * scale)
                now = in_weights * tl.load(own_weights + place) - lost * x
                tl.store(own_weights + place, now)
                if i + 1 < chunks:
                    tl.store(following + place, now.to(HALF))
                if FRESH:
                    tl.store(current + row * 3 * SIZE + place, now.to(HALF))
        else:
            if i + 1 < chunks:
                stored(following, gate.to(HALF), up.to(HALF), down.to(HALF), wide, SIZE)
            if FRESH:
                stored(current + row * 3 * SIZE, gate.to(HALF), up.to(HALF), down.to(HALF), wide, SIZE)
        tl.debug_barrier()
    if not ORTHOGONALISE:
        stored(own_weights, gate, up, down, wide, SIZE)
