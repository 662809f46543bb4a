"""What both scans of the deep memory do with a tile: Newton-Schulz, and the network's activations.

Letters: T tokens of a tile, K key width, E hidden width. Operands of products are rounded to the dtype of the chunks'
starts, sums are float32. A product whose first operand would be another product's transpose is avoided: where both
orders of a tile are needed, both are computed (Triton 3.4 to 3.7 miscompile the former on Hopper).
"""

import triton
import triton.language as tl

FIRST = tl.constexpr(3.4445)
SECOND = tl.constexpr(-4.775)
THIRD = tl.constexpr(2.0315)
STEPS = tl.constexpr(5)
SMALLEST_SQUARE = tl.constexpr(1e-12)


@triton.jit
def product(x, y, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """x y of operands rounded to HALF, summed in float32."""
    return tl.dot(x.to(HALF), y.to(HALF), input_precision=PRECISION)


@triton.jit
def fine(x, y):
    """x y in float32, by three products of tf32."""
    return tl.dot(x, y, input_precision="tf32x3")


@triton.jit
def within(x, y, FINE: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """`fine`, for what goes into or comes from Newton-Schulz, or `product`."""
    if FINE:
        result = fine(x.to(tl.float32), y.to(tl.float32))
    else:
        result = product(x, y, HALF, PRECISION)
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
def activations(opening, raised):
    """Of the pre-activations: h, SiLU and its first derivative at `opening`."""
    share = tl.sigmoid(opening)
    silu = opening * share
    return silu * raised, silu, share + silu * (1 - share)


@triton.jit
def second_derivative(opening):
    """SiLU'' at `opening`."""
    share = tl.sigmoid(opening)
    return share * (1 - share) * (2 + opening * (1 - 2 * share))
