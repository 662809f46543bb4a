"""The chunks backwards, from the adjoints of W and S after the last: a program a row and head.

Of a chunk that starts from W and S, with G(W) its gradient, S' = m S + G, W' = a W - b NS5(S'), and bars for adjoints,
    S'_bar += -b NS5'(S')^T W'_bar,   m_bar = <S, S'_bar>,   a_bar = <W, W'_bar>,   b_bar = -<NS5(S'), W'_bar>,
    W_bar = a W'_bar + (dG/dW)^T S'_bar,   S_bar = m S'_bar;
without Newton-Schulz W' = a W - b S - P(W), P of other factors, and P_bar = -W'_bar. What a token of factor f adds to
<G, S'_bar>, with X = k A_bar, Y = k B_bar, Z = h C_bar^T of the three matrices' adjoints, is
    f (dh * r * s' . X + dh * s . Y + e . Z),   a = k A, r = k B, s = SiLU(a), h = s * r, e = k + h C^T - v, dh = e C,
which `tile_back` differentiates by hand. Source: mathematics §3.
"""

import triton
import triton.language as tl

from .tiles import (
    FIRST,
    SECOND,
    SMALLEST_SQUARE,
    STEPS,
    THIRD,
    fine,
    polynomial,
    product,
    second_derivative,
    taken,
    tried,
    within,
)


@triton.jit
def newton_schulz_back(s, upstream, steps, wide, squares, K: tl.constexpr, SIZE: tl.constexpr):
    """(NS5(s), the adjoint of s per unit of `upstream`'s), with what the steps computed kept in `steps`."""
    EACH: tl.constexpr = SIZE + 2 * K * K
    scale = tl.rsqrt(tl.sum(s * s) + SMALLEST_SQUARE)
    x = s * scale
    for step in range(STEPS):
        square, factor = polynomial(x)
        tl.store(steps + step * EACH + wide, x)
        tl.store(steps + step * EACH + SIZE + squares, square)
        tl.store(steps + step * EACH + SIZE + K * K + squares, factor)
        x = x * FIRST + fine(factor, x)
    tl.debug_barrier()
    for step in range(STEPS):
        kept = steps + (STEPS - 1 - step) * EACH
        square, factor = tl.load(kept + SIZE + squares), tl.load(kept + SIZE + K * K + squares)
        before = tl.load(kept + wide)
        both = fine(upstream, tl.trans(before))
        both += tl.trans(both)
        through = fine(both, square)
        through = both * SECOND + (through + tl.trans(through)) * THIRD
        upstream = upstream * FIRST + fine(factor, upstream) + fine(through, before)
    tl.debug_barrier()
    return x, scale * upstream - (scale * scale * scale) * s * tl.sum(s * upstream)


@triton.jit
def matrices_back(
    i,
    last,
    anew,
    row,
    rows,
    h,
    own_shares,
    own_to_shares,
    starts,
    learned,
    current,
    momenta,
    first_momentum,
    to_starts,
    after,
    before,
    to_momentum,
    narrow,
    steps,
    wide,
    squares,
    K: tl.constexpr,
    SIZE: tl.constexpr,
    ORTHOGONALISE: tl.constexpr,
    FRESH: tl.constexpr,
    LAZY: tl.constexpr,
    HALF: tl.constexpr,
):
    """S'_bar complete in `to_momentum`, a W'_bar (and, but for fresh chunks, what is read) in `before`, and the
    adjoints of the shares. Without Newton-Schulz S'_bar and W'_bar go rounded into `narrow`, too. `LAZY` leaves S_bar
    of the later chunk, from its S'_bar and its W'_bar, which `before` still holds, to this one."""
    in_weights, lost = tl.load(own_shares + 1), tl.load(own_shares + 2)
    later, later_lost = 1.0, 0.0
    if LAZY:
        if not last:
            later, later_lost = tl.load(own_shares + 3), tl.load(own_shares + 5)
    nothing = tl.zeros((K,), tl.float32)
    to_in_momentum, to_in_weights, to_lost = nothing, nothing, nothing
    for p in range(3):
        place = p * SIZE + wide
        upstream = tl.load(after + place)
        adjoint = later * tl.load(to_momentum + place)
        if LAZY and not ORTHOGONALISE:
            if not last:
                adjoint -= later_lost * tl.load(before + place)
            tl.debug_barrier()  # what is loaded and what is stored there need not be the same threads'
        w = tl.load(starts + (i * rows + row) * 3 * SIZE + place)
        if FRESH:
            if anew:
                w = tl.load(learned + h * 3 * SIZE + place).to(HALF)
            tl.store(current + row * 3 * SIZE + place, w)
        w = w.to(tl.float32)
        to_in_weights += tl.sum(upstream * w, 1)
        if FRESH:
            tl.store(before + place, in_weights * upstream)
        else:
            read = tl.load(to_starts + (i * rows + row) * 3 * SIZE + place).to(tl.float32)
            tl.store(before + place, in_weights * upstream + read)
        if ORTHOGONALISE:
            s = tl.load(momenta + (i * rows + row) * 3 * SIZE + place).to(tl.float32)
            x, direction = newton_schulz_back(s, -lost * upstream, steps, wide, squares, K, SIZE)
            to_lost -= tl.sum(tl.load(after + place) * x, 1)
            adjoint += direction
        if i == 0:
            s = tl.load(first_momentum + place)
        else:
            s = tl.load(momenta + ((i - 1) * rows + row) * 3 * SIZE + place).to(tl.float32)
        s = tl.where(anew, 0.0, s)
        if not ORTHOGONALISE:
            to_lost -= tl.sum(upstream * s, 1)
            tl.store(narrow + place, adjoint.to(HALF))
            tl.store(narrow + 3 * SIZE + place, upstream.to(HALF))
        to_in_momentum += tl.sum(adjoint * s, 1)
        tl.store(to_momentum + place, adjoint)
    tl.store(own_to_shares, tl.sum(to_in_momentum))
    tl.store(own_to_shares + 1, tl.sum(to_in_weights))
    tl.store(own_to_shares + 2, tl.sum(to_lost))


@triton.jit
def earlier_back(
    i,
    anew,
    row,
    rows,
    own_shares,
    to_starts,
    to_learned,
    after,
    before,
    to_momentum,
    wide,
    SIZE: tl.constexpr,
    ORTHOGONALISE: tl.constexpr,
    FRESH: tl.constexpr,
):
    """The adjoints of W and S before the chunk; of a fresh one those of the learned weights, and nothing of S."""
    in_momentum, lost = tl.load(own_shares), tl.load(own_shares + 2)
    for p in range(3):
        place = p * SIZE + wide
        adjoint = in_momentum * tl.load(to_momentum + place)
        if not ORTHOGONALISE:
            adjoint -= lost * tl.load(after + place)
        if FRESH:
            read = tl.load(to_starts + (i * rows + row) * 3 * SIZE + place).to(tl.float32)
            whole = tl.load(before + place)
            adjoint = tl.where(anew, 0.0, adjoint)
            found = tl.load(to_learned + place)
            tl.store(to_learned + place, tl.where(anew, found + whole, found))
            whole = tl.where(anew, 0.0, whole)
            tl.store(before + place, whole + read)
        tl.store(to_momentum + place, adjoint)


@triton.jit
def asked(
    of,
    factor,
    k,
    hidden,
    error,
    to_opening,
    to_raised,
    wide,
    tall,
    SIZE: tl.constexpr,
    FINE: tl.constexpr,
    HALF: tl.constexpr,
):
    """What adjoints `of` the three matrices ask of each token: the factor's adjoint, the factor times X, Y and Z, and
    what they leave for k and h."""
    x = within(k, tl.load(of + wide), FINE, HALF)
    y = within(k, tl.load(of + SIZE + wide), FINE, HALF)
    z = within(hidden, tl.load(of + 2 * SIZE + tall), FINE, HALF)
    to_factor = tl.sum(to_opening * x + to_raised * y, 1) + tl.sum(error * z, 1)
    factor = factor[:, None]
    x, y, z = x * factor, y * factor, z * factor
    to_k = within(to_opening * factor, tl.load(of + tall), FINE, HALF)
    to_k += within(to_raised * factor, tl.load(of + SIZE + tall), FINE, HALF)
    to_h = within(error * factor, tl.load(of + 2 * SIZE + wide), FINE, HALF)
    return to_factor, (x, y, z), to_k, to_h


@triton.jit
def tile_back(
    at,
    inside,
    factors,
    to_factors,
    key,
    value,
    weights,
    leading,
    trailing,
    before,
    to_key,
    to_value,
    heads,
    key_t,
    value_t,
    ks,
    wide,
    tall,
    C: tl.constexpr,
    X: tl.constexpr,
    K: tl.constexpr,
    SIZE: tl.constexpr,
    ORTHOGONALISE: tl.constexpr,
    HALF: tl.constexpr,
):
    """The adjoints of a tile's keys, values and factors, and in `before` what its gradients add to W_bar."""
    k, kt, v = taken(key, value, at, inside, ks, key_t, value_t)
    f = tl.load(factors, mask=inside, other=0.0)
    error, layer, adjoints = tried(k, v, weights, wide, tall, SIZE, HALF)
    opening, raised, hidden, silu, slope = layer
    to_hidden, to_opening, to_raised = adjoints
    to_f, through, to_k, to_h = asked(
        leading, f, k, hidden, error, to_opening, to_raised, wide, tall, SIZE, ORTHOGONALISE, HALF
    )
    tl.store(to_factors, to_f, mask=inside)
    through_gate, through_up, through_down = through
    if not ORTHOGONALISE:
        g = -tl.load(factors + X, mask=inside, other=0.0)
        to_g, more, more_to_k, more_to_h = asked(
            trailing, g, k, hidden, error, to_opening, to_raised, wide, tall, SIZE, False, HALF
        )
        tl.store(to_factors + X, -to_g, mask=inside)
        through_gate, through_up, through_down = through_gate + more[0], through_up + more[1], through_down + more[2]
        to_k, to_h = to_k + more_to_k, to_h + more_to_h
    # Backwards: dh, then e, then h, then the pre-activations.
    of_hidden = through_gate * raised * slope + through_up * silu
    of_error = through_down + product(of_hidden, tl.load(weights + 2 * SIZE + tall), HALF)
    to_h += product(of_error, tl.load(weights + 2 * SIZE + wide), HALF)
    of_raised = through_gate * to_hidden * slope + to_h * silu
    of_opening = through_gate * to_hidden * raised * second_derivative(opening)
    of_opening += through_up * to_hidden * slope + to_h * raised * slope
    to_k += of_error + product(of_opening, tl.load(weights + tall), HALF)
    to_k += product(of_raised, tl.load(weights + SIZE + tall), HALF)
    # Masked tokens have k = v = 0 and so e = 0 and no factor: they add nothing below.
    place = before + wide
    tl.store(place, tl.load(place) + product(kt, of_opening, HALF))
    place = before + SIZE + wide
    tl.store(place, tl.load(place) + product(kt, of_raised, HALF))
    place = before + 2 * SIZE + wide
    more_down = product(tl.trans(error), of_hidden, HALF)
    more_down += product(tl.trans(of_error), hidden, HALF)
    tl.store(place, tl.load(place) + more_down)
    place = at[:, None] * heads * K + ks[None, :]
    if X > C:
        to_k += tl.load(to_key + place, mask=inside[:, None], other=0.0).to(tl.float32)
        of_error -= tl.load(to_value + place, mask=inside[:, None], other=0.0).to(tl.float32)
    tl.store(to_key + place, to_k.to(to_key.dtype.element_ty), mask=inside[:, None])
    tl.store(to_value + place, (-of_error).to(to_value.dtype.element_ty), mask=inside[:, None])


@triton.jit
def scan_back_kernel(
    key,
    value,
    factors,
    shares,
    fresh,
    learned,
    starts,
    momenta,
    first_momentum,
    to_starts,
    to_weights,
    to_momentum,
    to_learned,
    narrow,
    steps,
    to_key,
    to_value,
    to_factors,
    to_shares,
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
):
    """`to_weights` holds two slots of all rows, the adjoint after the last chunk in the first, that before the first
    chunk at the end in slot n modulo 2. `to_key`, `to_value` (B, X - C + n C, H, K) are summed into where X > C."""
    HALF: tl.constexpr = starts.dtype.element_ty
    SIZE: tl.constexpr = K * E
    LAZY: tl.constexpr = not FRESH
    WAYS: tl.constexpr = 1 if ORTHOGONALISE else 2
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0).to(tl.int64)
    b, h = row // heads, row % heads
    ks, es, ts = tl.arange(0, K), tl.arange(0, E), tl.arange(0, T)
    wide = ks[:, None] * E + es[None, :]
    tall = es[:, None] + ks[None, :] * E
    to_momentum += row * 3 * SIZE
    to_learned += row * 3 * SIZE
    first_momentum += row * 3 * SIZE
    narrow += row * 6 * SIZE
    steps += row * STEPS * (SIZE + 2 * K * K)
    squares = ks[:, None] * K + ks[None, :]
    key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    to_key += (b * (X - C + chunks * C) * heads + h) * K
    to_value += (b * (X - C + chunks * C) * heads + h) * K
    for turn in range(chunks):
        i = chunks - 1 - turn
        after = to_weights + ((turn % 2) * rows + row) * 3 * SIZE
        before = to_weights + (((turn + 1) % 2) * rows + row) * 3 * SIZE
        anew = i < 0
        if FRESH:
            anew = tl.load(fresh + b * chunks + i) != 0
        own_shares = shares + (row * chunks + i) * 3
        matrices_back(
            i, turn == 0, anew, row, rows, h, own_shares, to_shares + (row * chunks + i) * 3, starts, learned, current,
            momenta, first_momentum, to_starts, after, before, to_momentum, narrow, steps, wide, squares, K,
            SIZE, ORTHOGONALISE, FRESH, LAZY, HALF,
        )  # fmt: skip
        tl.debug_barrier()
        slot = starts + (i * rows + row) * 3 * SIZE
        if FRESH:
            slot = current + row * 3 * SIZE
        # S'_bar and W'_bar as products take them.
        leading, trailing = to_momentum, after
        if not ORTHOGONALISE:
            leading, trailing = narrow, narrow + 3 * SIZE
        own_factors = factors + (row * chunks + i) * WAYS * X
        to_own_factors = to_factors + (row * chunks + i) * WAYS * X
        for first in range(0, X, T):
            here = first + ts
            inside = here < X
            at = (i * C + here).to(tl.int64)
            tile_back(
                at, inside, own_factors + here, to_own_factors + here, key, value, slot, leading, trailing, before,
                to_key, to_value, heads, key_t, value_t, ks, wide, tall, C, X, K, SIZE, ORTHOGONALISE, HALF,
            )  # fmt: skip
            tl.debug_barrier()
        if not LAZY:
            earlier_back(
                i, anew, row, rows, own_shares, to_starts, to_learned, after, before, to_momentum, wide, SIZE,
                ORTHOGONALISE, FRESH,
            )  # fmt: skip
        tl.debug_barrier()
    if LAZY:
        share, lost = tl.load(shares + row * chunks * 3), tl.load(shares + row * chunks * 3 + 2)
        after = to_weights + (((chunks - 1) % 2) * rows + row) * 3 * SIZE
        for p in range(3):
            place = p * SIZE + wide
            adjoint = share * tl.load(to_momentum + place)
            if not ORTHOGONALISE:
                adjoint -= lost * tl.load(after + place)
            tl.store(to_momentum + place, adjoint)
