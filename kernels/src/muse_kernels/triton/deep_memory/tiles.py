"""What both scans of the deep memory do with a tile: Newton-Schulz, and the network's activations.

Letters: T tokens of a tile, K key width, E hidden width. Operands of products are rounded to the dtype of the chunks'
starts, sums are float32.

On Hopper a product of 64 rows becomes `wgmma`, whose first operand lies in registers wherever it was computed. ptxas
before CUDA 13.3 reuses such registers while the product still reads them (CUDA 13.3's release notes; Triton 3.6 to 3.8
bring 12.8 and 12.9): results change from run to run, and addresses go astray. Tiles of 32 rows become `mma.sync`; of a
first operand that was loaded `wgmma` reads the copy in shared memory (`added`).
"""

import triton
import triton.language as tl

FIRST = tl.constexpr(3.4445)
SECOND = tl.constexpr(-4.775)
THIRD = tl.constexpr(2.0315)
STEPS = tl.constexpr(5)
SMALLEST_SQUARE = tl.constexpr(1e-12)


@triton.jit
def halves(x):
    """The upper and the lower half of a tile's rows."""
    M: tl.constexpr = x.shape[0] // 2
    N: tl.constexpr = x.shape[1]
    return tl.split(tl.permute(tl.reshape(x, (2, M, N)), (1, 2, 0)))


@triton.jit
def stacked(upper, lower):
    """Two tiles of equal size over one another."""
    M: tl.constexpr = upper.shape[0] * 2
    N: tl.constexpr = upper.shape[1]
    return tl.reshape(tl.permute(tl.join(upper, lower), (2, 0, 1)), (M, N))


@triton.jit
def sides(x):
    """The left and the right half of a tile's columns."""
    M: tl.constexpr = x.shape[0]
    N: tl.constexpr = x.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(x, (M, 2, N)), (0, 2, 1)))


@triton.jit
def strip(x, y):
    """x y of a tile of 32 rows at most, in float32 by three products of tf32: 32 columns at a time, for
    both parts of both operands lie in registers."""
    if x.shape[1] <= 32:
        result = tl.dot(x, y, input_precision="tf32x3")
    else:
        left, right = sides(x)
        upper, lower = halves(y)
        result = strip(left, upper) + strip(right, lower)
    return result


@triton.jit
def fine(x, y):
    """x y in float32; x has 64 rows at most."""
    if x.shape[0] <= 32:
        result = strip(x, y)
    else:
        upper, lower = halves(x)
        result = stacked(strip(upper, y), strip(lower, y))
    return result


@triton.jit
def product(x, y, HALF: tl.constexpr):
    """x y of operands rounded to HALF, summed in float32; x has 64 rows at most."""
    x, y = x.to(HALF), y.to(HALF)
    if HALF == tl.float32:
        result = fine(x, y)
    elif x.shape[0] <= 32:
        result = tl.dot(x, y)
    else:
        upper, lower = halves(x)
        result = stacked(tl.dot(upper, y), tl.dot(lower, y))
    return result


@triton.jit
def added(sums, x, y, HALF: tl.constexpr):
    """sums + x y of an x of 64 rows at most that was loaded as it is, for `product` takes a computed one."""
    if HALF == tl.float32:
        sums += fine(x, y.to(HALF))
    else:
        sums = tl.dot(x, y.to(HALF), sums)
    return sums


@triton.jit
def within(x, y, FINE: tl.constexpr, HALF: tl.constexpr):
    """`fine`, for what goes into or comes from Newton-Schulz, or `product`."""
    if FINE:
        result = fine(x.to(tl.float32), y.to(tl.float32))
    else:
        result = product(x, y, HALF)
    return result


@triton.jit
def polynomial(x):
    """(M, b M + c M M) of M = x x^T."""
    square = fine(x, tl.trans(x))
    return square, square * SECOND + fine(square, square) * THIRD


@triton.jit
def newton_schulz(x):
    """Five steps on x (K, E), whose norm is 1. In float32: a chunk of few tokens has a momentum of low rank, and what
    rounding puts into its null space grows by 3.4445 a step."""
    for _ in range(STEPS):
        _, factor = polynomial(x)
        x = x * FIRST + fine(factor, x)
    return x


@triton.jit
def alike(x, y, scalar):
    """x, unless `scalar` is not a number, in the layout of y: where y comes from a product and x was just loaded, x is
    moved between threads once and not again for each use of it."""
    return tl.where(scalar == scalar, x, y)


@triton.jit
def loaded(place, wide, SIZE: tl.constexpr):
    """Three matrices."""
    return tl.load(place + wide), tl.load(place + SIZE + wide), tl.load(place + 2 * SIZE + wide)


@triton.jit
def stored(place, gate, up, down, wide, SIZE: tl.constexpr):
    """Three matrices, to be loaded by `loaded`."""
    tl.store(place + wide, gate)
    tl.store(place + SIZE + wide, up)
    tl.store(place + 2 * SIZE + wide, down)


@triton.jit
def activations(opening, raised):
    """Of the pre-activations: h, SiLU and its first derivative at `opening`."""
    share = tl.sigmoid(opening)
    silu = opening * share
    return silu * raised, silu, share + silu * (1 - share)


@triton.jit
def taken(key, value, at, inside, ks, key_t, value_t):
    """Keys and values of a tile's tokens (T, K), and the keys again (K, T); nothing of a token outside."""
    k = tl.load(key + at[:, None] * key_t + ks[None, :], mask=inside[:, None], other=0.0)
    kt = tl.load(key + at[None, :] * key_t + ks[:, None], mask=inside[None, :], other=0.0)
    v = tl.load(value + at[:, None] * value_t + ks[None, :], mask=inside[:, None], other=0.0)
    return k, kt, v


@triton.jit
def tried(k, v, gate, up, down, HALF: tl.constexpr):
    """f(k) - v, the hidden layer with what its derivatives need, and the adjoints of it and of its pre-activations."""
    opening, raised = product(k, gate, HALF), product(k, up, HALF)
    hidden, silu, slope = activations(opening, raised)
    error = k.to(tl.float32) + product(hidden, tl.trans(down), HALF) - v.to(tl.float32)
    to_hidden = product(error, down, HALF)
    to_opening, to_raised = to_hidden * raised * slope, to_hidden * silu
    return error, (opening, raised, hidden, silu, slope), (to_hidden, to_opening, to_raised)


@triton.jit
def second_derivative(opening):
    """SiLU'' at `opening`."""
    share = tl.sigmoid(opening)
    return share * (1 - share) * (2 + opening * (1 - 2 * share))
