"""The chunks backwards, from the adjoints of W and S after the last: a program a row and head.

Of a chunk that starts from W and S, with G(W) its gradient, S' = m S + G, W' = a W - b NS5(S'), and bars for adjoints,
    S'_bar += -b NS5'(S')^T W'_bar,   m_bar = <S, S'_bar>,   a_bar = <W, W'_bar>,   b_bar = -<NS5(S'), W'_bar>,
    W_bar = a W'_bar + (dG/dW)^T S'_bar,   S_bar = m S'_bar;
without Newton-Schulz W' = a W - b S - P(W), P of other factors, and P_bar = -W'_bar. What a token of factor f adds to
<G, S'_bar>, with X = k A_bar, Y = k B_bar, Z = h C_bar^T of the three matrices' adjoints, is
    f (dh * r * s' . X + dh * s . Y + e . Z),   a = k A, r = k B, s = SiLU(a), h = s * r, e = k + h C^T - v, dh = e C,
which is differentiated by hand. The scan does of it what W_bar needs; `tokens_kernel` computes before it a, r, e and
dh, and after it what else is asked of tokens and shares, for all chunks at once. Source: mathematics §3.
"""

import triton
import triton.language as tl

from .tiles import (
    FIRST,
    SECOND,
    SMALLEST_SQUARE,
    STEPS,
    THIRD,
    activations,
    added,
    alike,
    fine,
    loaded,
    polynomial,
    product,
    second_derivative,
    stored,
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
def matrix_back(
    p,
    upstream,
    scalars,
    momenta,
    to_momentum,
    leading,
    trailing,
    steps,
    anew,
    wide,
    squares,
    K: tl.constexpr,
    SIZE: tl.constexpr,
    ORTHOGONALISE: tl.constexpr,
    DIRECT: tl.constexpr = False,
):
    """(a W'_bar, S'_bar, b_bar) of matrix p from its W'_bar `upstream`. S'_bar, completed, and W'_bar go to `leading`
    and `trailing`; in `to_momentum` S_bar takes the place of S'_bar. `scalars`: m (of a fresh
    chunk 0), a, b, and the b of S (of a fresh chunk 0)."""
    in_momentum, in_weights, lost, of_momentum = scalars
    place = p * SIZE + wide
    adjoint = tl.load(to_momentum + place)
    if DIRECT:
        adjoint = alike(adjoint, upstream, in_weights)
    tl.store(trailing + place, upstream.to(trailing.dtype.element_ty))
    to_lost = 0.0
    if ORTHOGONALISE:
        x, direction = newton_schulz_back(tl.load(momenta + place), -lost * upstream, steps, wide, squares, K, SIZE)
        to_lost = -tl.sum(upstream * x)
        adjoint += direction
        earlier = in_momentum * adjoint
    else:
        earlier = in_momentum * adjoint - of_momentum * upstream
    tl.store(leading + place, adjoint.to(leading.dtype.element_ty))
    tl.store(to_momentum + place, earlier)
    return in_weights * upstream, adjoint, to_lost


@triton.jit
def matrix_begun(p, whole, to_learned, to_starts, anew, wide, SIZE: tl.constexpr, FRESH: tl.constexpr):
    """W_bar of matrix p: what its chunk's training asks, but for a fresh chunk, where that is the learned weights';
    and what its reading asks."""
    place = p * SIZE + wide
    if FRESH:
        found = tl.load(to_learned + place)
        tl.store(to_learned + place, tl.where(anew, found + whole, found))
        whole = tl.where(anew, 0.0, whole)
    return whole + tl.load(to_starts + place).to(tl.float32)


@triton.jit
def pair(
    p,
    w,
    scalars,
    to_momentum,
    leading,
    trailing,
    anew,
    wide,
    SIZE: tl.constexpr,
    DIRECT: tl.constexpr,
    HALF: tl.constexpr,
):
    """S'_bar and W'_bar of matrix p as products take them, behind the matrix itself: what `matrix_back` left, or with
    `DIRECT` its call."""
    if DIRECT:
        upstream = w.to(HALF)
        w, adjoint, _ = matrix_back(
            p, w, scalars, to_momentum, to_momentum, leading, trailing, to_momentum, anew, wide, wide, 1, SIZE, False,
            True,
        )  # fmt: skip
        adjoint = adjoint.to(HALF)
    else:
        adjoint, upstream = tl.load(leading + p * SIZE + wide), tl.load(trailing + p * SIZE + wide)
    return w, adjoint, upstream


@triton.jit
def tile_back(
    at,
    here,
    gate,
    up,
    down,
    key,
    key_t,
    factors,
    used,
    scalars,
    to_momentum,
    leading,
    trailing,
    layers,
    errors,
    to_value,
    heads,
    anew,
    ks,
    es,
    wide,
    X: tl.constexpr,
    K: tl.constexpr,
    E: tl.constexpr,
    ORTHOGONALISE: tl.constexpr,
    DIRECT: tl.constexpr,
    HALF: tl.constexpr,
):
    """The three matrices' W_bar with what a tile's gradients add; the adjoints of k A and k B take the place of these
    in `layers`, that of v goes to `to_value`. A token outside has k = e = 0 and no factor: it adds nothing."""
    SIZE: tl.constexpr = K * E
    inside = here < X
    kt = tl.load(key + at[None, :] * key_t + ks[:, None], mask=inside[None, :], other=0.0)
    k = tl.load(key + at[:, None] * key_t + ks[None, :], mask=inside[:, None], other=0.0)
    f = tl.load(factors + here, mask=inside, other=0.0)[:, None]
    place_of_layers = layers + here[:, None] * E + es[None, :]
    opening = tl.load(place_of_layers, mask=inside[:, None], other=0.0).to(tl.float32)
    raised = tl.load(place_of_layers + X * E, mask=inside[:, None], other=0.0).to(tl.float32)
    to_hidden = tl.load(place_of_layers + 2 * X * E, mask=inside[:, None], other=0.0).to(tl.float32)
    error = tl.load(errors + here[:, None] * K + ks[None, :], mask=inside[:, None], other=0.0)
    error_t = tl.load(errors + here[None, :] * K + ks[:, None], mask=inside[None, :], other=0.0)
    hidden = tl.load(place_of_layers + 3 * X * E, mask=inside[:, None], other=0.0)
    if ORTHOGONALISE:
        through_gate = f * fine(k.to(tl.float32), tl.load(leading + wide))
        through_up = f * fine(k.to(tl.float32), tl.load(leading + SIZE + wide))
        of_down = tl.load(leading + 2 * SIZE + wide)
        of_error = f * fine(hidden, tl.trans(of_down))
        to_h = f * fine(error, of_down)
    else:
        g = tl.load(factors + X + here, mask=inside, other=0.0)[:, None]
        gate, s, w = pair(0, gate, scalars, to_momentum, leading, trailing, anew, wide, SIZE, DIRECT, HALF)
        through_gate = f * product(k, s, HALF) - g * product(k, w, HALF)
        up, s, w = pair(1, up, scalars, to_momentum, leading, trailing, anew, wide, SIZE, DIRECT, HALF)
        through_up = f * product(k, s, HALF) - g * product(k, w, HALF)
        down, s, w = pair(2, down, scalars, to_momentum, leading, trailing, anew, wide, SIZE, DIRECT, HALF)
        of_error = f * product(hidden, tl.trans(s), HALF) - g * product(hidden, tl.trans(w), HALF)
        to_h = f * product(error, s, HALF) - g * product(error, w, HALF)
    # Backwards: dh, then e, then h, then the pre-activations.
    _, silu, slope = activations(opening, raised)
    of_hidden = through_gate * raised * slope + through_up * silu
    own_down = tl.load(used + 2 * SIZE + wide)
    of_error += product(of_hidden, tl.trans(own_down), HALF)
    to_h += product(of_error, own_down, HALF)
    of_raised = through_gate * to_hidden * slope + to_h * silu
    of_opening = through_gate * to_hidden * raised * second_derivative(opening)
    of_opening += through_up * to_hidden * slope + to_h * raised * slope
    place = to_value + here[:, None] * heads * K + ks[None, :]
    tl.store(place, (-of_error).to(to_value.dtype.element_ty), mask=inside[:, None])
    tl.store(place_of_layers, of_opening.to(layers.dtype.element_ty), mask=inside[:, None])
    tl.store(place_of_layers + X * E, of_raised.to(layers.dtype.element_ty), mask=inside[:, None])
    gate = added(gate, kt, of_opening, HALF)
    up = added(up, kt, of_raised, HALF)
    if ORTHOGONALISE:
        down += product(error_t, of_hidden, HALF)
    else:
        down = added(down, error_t, of_hidden, HALF)
    down += product(tl.trans(of_error), hidden, HALF)
    return gate, up, down


@triton.jit
def scan_back_kernel(
    key,
    factors,
    shares,
    fresh,
    used,
    momenta,
    to_starts,
    to_weights,
    to_momentum,
    to_learned,
    leading,
    trailing,
    steps,
    layers,
    errors,
    to_value,
    to_shares,
    heads,
    chunks,
    key_b,
    key_h,
    key_t,
    C: tl.constexpr,
    X: tl.constexpr,
    K: tl.constexpr,
    E: tl.constexpr,
    T: tl.constexpr,
    ORTHOGONALISE: tl.constexpr,
    FRESH: tl.constexpr,
):
    """`to_weights` and `to_momentum` (B, H, 3, K, E), the adjoints after the last chunk, become those before the
    first; `to_value` (B, n, X, H, K)."""
    HALF: tl.constexpr = used.dtype.element_ty
    SIZE: tl.constexpr = K * E
    WAYS: tl.constexpr = 1 if ORTHOGONALISE else 2
    DIRECT: tl.constexpr = X <= T and not ORTHOGONALISE  # one tile's products take matrices from registers
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0).to(tl.int64)
    b, h = row // heads, row % heads
    ks, es, ts = tl.arange(0, K), tl.arange(0, E), tl.arange(0, T)
    wide = ks[:, None] * E + es[None, :]
    squares = ks[:, None] * K + ks[None, :]
    to_weights += row * 3 * SIZE
    to_momentum += row * 3 * SIZE
    to_learned += row * 3 * SIZE
    steps += row * STEPS * (SIZE + 2 * K * K)
    key += b * key_b + h * key_h
    gate, up, down = loaded(to_weights, wide, SIZE)
    for turn in range(chunks):
        i = chunks - 1 - turn
        anew = i < 0
        if FRESH:
            anew = tl.load(fresh + b * chunks + i) != 0
        own_shares = shares + (row * chunks + i) * 3
        in_momentum, in_weights, lost = tl.load(own_shares), tl.load(own_shares + 1), tl.load(own_shares + 2)
        scalars = (tl.where(anew, 0.0, in_momentum), in_weights, lost, tl.where(anew, 0.0, lost))
        own = i * rows + row
        of = own * 3 * SIZE
        if ORTHOGONALISE:
            stored(to_weights, gate, up, down, wide, SIZE)
            tl.debug_barrier()
            to_lost = 0.0
            for p in range(3):  # one at a time, for Newton-Schulz takes the registers
                before, _, lost = matrix_back(
                    p, tl.load(to_weights + p * SIZE + wide), scalars, momenta + of, to_momentum, leading + of,
                    trailing + of, steps, anew, wide, squares, K, SIZE, True,
                )  # fmt: skip
                tl.store(to_weights + p * SIZE + wide, before)
                to_lost += lost
            tl.store(to_shares + (row * chunks + i) * 3 + 2, to_lost)
            tl.debug_barrier()
            gate, up, down = loaded(to_weights, wide, SIZE)
        elif not DIRECT:
            gate, _, _ = matrix_back(
                0, gate, scalars, momenta, to_momentum, leading + of, trailing + of, steps, anew, wide, squares,
                K, SIZE, False,
            )  # fmt: skip
            up, _, _ = matrix_back(
                1, up, scalars, momenta, to_momentum, leading + of, trailing + of, steps, anew, wide, squares,
                K, SIZE, False,
            )  # fmt: skip
            down, _, _ = matrix_back(
                2, down, scalars, momenta, to_momentum, leading + of, trailing + of, steps, anew, wide, squares,
                K, SIZE, False,
            )  # fmt: skip
        if not DIRECT:
            tl.debug_barrier()  # what is stored above is loaded by other threads below
        for first in range(0, X, T):
            here = first + ts
            gate, up, down = tile_back(
                (i * C + here).to(tl.int64), here, gate, up, down, key, key_t, factors + (row * chunks + i) * WAYS * X,
                used + of, scalars, to_momentum, leading + of, trailing + of, layers + own * 4 * X * E,
                errors + own * X * K, to_value + (((b * chunks + i) * X) * heads + h) * K, heads, anew, ks, es, wide,
                X, K, E, ORTHOGONALISE, DIRECT, HALF,
            )  # fmt: skip
        gate = matrix_begun(0, gate, to_learned, to_starts + of, anew, wide, SIZE, FRESH)
        up = matrix_begun(1, up, to_learned, to_starts + of, anew, wide, SIZE, FRESH)
        down = matrix_begun(2, down, to_learned, to_starts + of, anew, wide, SIZE, FRESH)
        tl.debug_barrier()
    stored(to_weights, gate, up, down, wide, SIZE)
