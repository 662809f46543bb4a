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
TRANSPOSES = tl.constexpr(False)
"""Whether products take a transposed operand; otherwise x and its transpose are both carried through the steps."""
STEPS = tl.constexpr(5)
SMALLEST_SQUARE = tl.constexpr(1e-12)


@triton.jit
def product(x, y, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """x y of operands rounded to HALF, summed in float32."""
    return tl.dot(x.to(HALF), y.to(HALF), input_precision=PRECISION)


@triton.jit
def polynomial(x, xt, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """(M, b M + c M M) of M = x x^T."""
    if TRANSPOSES:
        square = product(x, tl.trans(x.to(HALF)), HALF, PRECISION)
    else:
        square = product(x, xt, HALF, PRECISION)
    return square, square * SECOND + product(square, square, HALF, PRECISION) * THIRD


@triton.jit
def newton_schulz(x, xt, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """Five steps on x (K, E), whose norm is 1, and its transpose."""
    for _ in range(STEPS):
        _, factor = polynomial(x, xt, HALF, PRECISION)
        x = x * FIRST + product(factor, x, HALF, PRECISION)
        if not TRANSPOSES:
            xt = xt * FIRST + product(xt, factor, HALF, PRECISION)
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
