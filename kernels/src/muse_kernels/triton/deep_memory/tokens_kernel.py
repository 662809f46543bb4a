"""What of the backward pass needs no later chunk first: a program a chunk, row and head, before and after the scan.

Before: the inner gradient's parts at each chunk's weights (`trials_kernel`). After, from the adjoints S'_bar and W'_bar
that the scan left for each chunk, what is left of the keys', values', factors' and shares' (`tokens_back_kernel`).
Letters as in `backward_kernel`.
"""

import triton
import triton.language as tl

from .tiles import activations, loaded, product, tried, within


@triton.jit
def trials_kernel(
    key,
    value,
    used,
    layers,
    errors,
    rows,
    heads,
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
):
    """`used` (n, B, H, 3, K, E): the weights that each chunk trains; `layers` (n, B, H, 4, X, E): k A, k B, the
    adjoint of h, and h; `errors` (n, B, H, X, K)."""
    HALF: tl.constexpr = used.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    i, row = program // rows, program % rows
    b, h = row // heads, row % heads
    ks, es, ts = tl.arange(0, K), tl.arange(0, E), tl.arange(0, T)
    wide = ks[:, None] * E + es[None, :]
    key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    for first in range(0, X, T):
        here = first + ts
        inside = (here < X)[:, None]
        at = (i * C + here)[:, None]
        k = tl.load(key + at * key_t + ks[None, :], mask=inside, other=0.0)
        v = tl.load(value + at * value_t + ks[None, :], mask=inside, other=0.0)
        gate, up, down = loaded(used + program * 3 * K * E, wide, K * E)
        error, layer, adjoints = tried(k, v, gate, up, down, HALF)
        place = layers + (program * 4 * X + here[:, None]) * E + es[None, :]
        tl.store(place, layer[0].to(layers.dtype.element_ty), mask=inside)
        tl.store(place + X * E, layer[1].to(layers.dtype.element_ty), mask=inside)
        tl.store(place + 2 * X * E, adjoints[0].to(layers.dtype.element_ty), mask=inside)
        tl.store(place + 3 * X * E, layer[2].to(layers.dtype.element_ty), mask=inside)
        place = errors + (program * X + here[:, None]) * K + ks[None, :]
        tl.store(place, error.to(errors.dtype.element_ty), mask=inside)


@triton.jit
def asked(
    of, k, hidden, error, to_opening, to_raised, tall, SIZE: tl.constexpr, FINE: tl.constexpr, HALF: tl.constexpr
):
    """What adjoints `of` the three matrices ask of each token's factor, and leave for k per unit of the factor."""
    to_k = within(to_opening, tl.load(of + tall), FINE, HALF)
    to_k += within(to_raised, tl.load(of + SIZE + tall), FINE, HALF)
    z = within(hidden, tl.load(of + 2 * SIZE + tall), FINE, HALF)
    return tl.sum(k.to(tl.float32) * to_k + error * z, 1), to_k


@triton.jit
def tokens_back_kernel(
    key,
    factors,
    fresh,
    used,
    momenta,
    first_momentum,
    leading,
    trailing,
    layers,
    errors,
    to_key,
    to_value,
    to_factors,
    to_shares,
    rows,
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
    """`layers` hold the adjoints of k A and k B and, as before the scan, that of h, and h; `to_key`, and `to_value` of
    the scan (B, n, X, H, K); of `to_shares` (B, H, n, 3) the last is the scan's where updates are orthogonalised."""
    HALF: tl.constexpr = used.dtype.element_ty
    SIZE: tl.constexpr = K * E
    WAYS: tl.constexpr = 1 if ORTHOGONALISE else 2
    program = tl.program_id(0).to(tl.int64)
    i, row = program // rows, program % rows
    b, h = row // heads, row % heads
    ks, es, ts = tl.arange(0, K), tl.arange(0, E), tl.arange(0, T)
    wide = ks[:, None] * E + es[None, :]
    tall = es[:, None] + ks[None, :] * E
    key += b * key_b + h * key_h
    used += program * 3 * SIZE
    leading += program * 3 * SIZE
    trailing += program * 3 * SIZE
    for first in range(0, X, T):
        here = first + ts
        inside = here < X
        k = tl.load(key + (i * C + here)[:, None] * key_t + ks[None, :], mask=inside[:, None], other=0.0)
        place = (program * X + here[:, None]) * K + ks[None, :]
        error = tl.load(errors + place, mask=inside[:, None], other=0.0).to(tl.float32)
        place = (((b * chunks + i) * X + here[:, None]) * heads + h) * K + ks[None, :]
        of_error = -tl.load(to_value + place, mask=inside[:, None], other=0.0).to(tl.float32)
        place = layers + (program * 4 * X + here[:, None]) * E + es[None, :]
        to_hidden = tl.load(place + 2 * X * E, mask=inside[:, None], other=0.0).to(tl.float32)
        raised = product(k, tl.load(used + SIZE + wide), HALF)
        hidden = tl.load(place + 3 * X * E, mask=inside[:, None], other=0.0)
        _, silu, slope = activations(product(k, tl.load(used + wide), HALF), raised)
        to_opening, to_raised = to_hidden * raised * slope, to_hidden * silu
        place_of_factors = (row * chunks + i) * WAYS * X + here
        f = tl.load(factors + place_of_factors, mask=inside, other=0.0)
        to_f, to_k = asked(leading, k, hidden, error, to_opening, to_raised, tall, SIZE, ORTHOGONALISE, HALF)
        tl.store(to_factors + place_of_factors, to_f, mask=inside)
        to_k = to_k * f[:, None] + of_error
        if not ORTHOGONALISE:
            f = tl.load(factors + X + place_of_factors, mask=inside, other=0.0)
            to_f, more = asked(trailing, k, hidden, error, to_opening, to_raised, tall, SIZE, False, HALF)
            tl.store(to_factors + X + place_of_factors, -to_f, mask=inside)
            to_k -= more * f[:, None]
        to_k += product(tl.load(place, mask=inside[:, None], other=0.0), tl.load(used + tall), HALF)
        to_k += product(tl.load(place + X * E, mask=inside[:, None], other=0.0), tl.load(used + SIZE + tall), HALF)
        place = (((b * chunks + i) * X + here[:, None]) * heads + h) * K + ks[None, :]
        tl.store(to_key + place, to_k.to(to_key.dtype.element_ty), mask=inside[:, None])
    anew = i < 0
    if FRESH:
        anew = tl.load(fresh + b * chunks + i) != 0
    nothing = tl.zeros((K,), tl.float32)
    to_in_momentum, to_in_weights, to_lost = nothing, nothing, nothing
    for p in range(3):
        place = p * SIZE + wide
        of_momentum, of_weights = tl.load(leading + place).to(tl.float32), tl.load(trailing + place).to(tl.float32)
        if i == 0:
            s = tl.load(first_momentum + row * 3 * SIZE + place)
        else:
            s = tl.load(momenta + (program - rows) * 3 * SIZE + place).to(tl.float32)
        s = tl.where(anew, 0.0, s)
        to_in_momentum += tl.sum(of_momentum * s, 1)
        to_in_weights += tl.sum(of_weights * tl.load(used + place).to(tl.float32), 1)
        to_lost -= tl.sum(of_weights * s, 1)
    to_shares += (row * chunks + i) * 3
    tl.store(to_shares, tl.sum(to_in_momentum))
    tl.store(to_shares + 1, tl.sum(to_in_weights))
    if not ORTHOGONALISE:
        tl.store(to_shares + 2, tl.sum(to_lost))
