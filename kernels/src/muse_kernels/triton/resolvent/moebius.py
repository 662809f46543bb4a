"""Products of the complex matrices [[0, 1], [-p, d]], which act on (theta, 1) as one step of the continued fraction.

A matrix is eight real tensors: top row (x0, x1), bottom row (y0, y1), real and imaginary parts side by side.
Only ratios matter, so products are scaled by powers of two, exactly, before they can overflow.
"""

import triton
import triton.language as tl

from .complex import multiply, multiply_add, reciprocal, subtract_product


@triton.jit
def normalised(x0r, x0i, x1r, x1i, y0r, y0i, y1r, y1i):
    """The matrix over the power of two of its largest component, from the float's exponent bits."""
    top = tl.maximum(tl.maximum(tl.abs(x0r), tl.abs(x0i)), tl.maximum(tl.abs(x1r), tl.abs(x1i)))
    bottom = tl.maximum(tl.maximum(tl.abs(y0r), tl.abs(y0i)), tl.maximum(tl.abs(y1r), tl.abs(y1i)))
    exponent = tl.maximum(top, bottom).to(tl.int32, bitcast=True) & 0x7F800000
    scale = (0x7F000000 - tl.minimum(exponent, 0x7E800000)).to(tl.float32, bitcast=True)
    return x0r * scale, x0i * scale, x1r * scale, x1i * scale, y0r * scale, y0i * scale, y1r * scale, y1i * scale


@triton.jit
def then_moebius(
    ax0r, ax0i, ax1r, ax1i, ay0r, ay0i, ay1r, ay1i, bx0r, bx0i, bx1r, bx1i, by0r, by0i, by1r, by1i
):  # fmt: skip
    """Matrix a followed by matrix b, that is b a: associative."""
    x0r, x0i = multiply(bx1r, bx1i, ay0r, ay0i)
    x0r, x0i = multiply_add(bx0r, bx0i, ax0r, ax0i, x0r, x0i)
    x1r, x1i = multiply(bx1r, bx1i, ay1r, ay1i)
    x1r, x1i = multiply_add(bx0r, bx0i, ax1r, ax1i, x1r, x1i)
    y0r, y0i = multiply(by1r, by1i, ay0r, ay0i)
    y0r, y0i = multiply_add(by0r, by0i, ax0r, ax0i, y0r, y0i)
    y1r, y1i = multiply(by1r, by1i, ay1r, ay1i)
    y1r, y1i = multiply_add(by0r, by0i, ax1r, ax1i, y1r, y1i)
    return normalised(x0r, x0i, x1r, x1i, y0r, y0i, y1r, y1i)


@triton.jit
def act(matrix, tr, ti):
    """theta after a matrix of eight parts: (x0 t + x1) / (y0 t + y1)."""
    x0r, x0i, x1r, x1i, y0r, y0i, y1r, y1i = matrix
    nr, ni = multiply_add(x0r, x0i, tr, ti, x1r, x1i)
    dr, di = multiply_add(y0r, y0i, tr, ti, y1r, y1i)
    # Scaled so that |denominator|^2 stays in range whatever the two magnitudes are.
    exponent = tl.maximum(tl.abs(dr), tl.abs(di)).to(tl.int32, bitcast=True) & 0x7F800000
    scale = (0x7F000000 - tl.minimum(exponent, 0x7E800000)).to(tl.float32, bitcast=True)
    dr, di = reciprocal(dr * scale, di * scale)
    return multiply(nr * scale, ni * scale, dr, di)


@triton.jit
def lane_products(dr, di, pr, pi, E: tl.constexpr):
    """Each lane's matrix, its E > 2 sites in order: tuples of d and p -> eight tensors (P,)."""
    x0r, x0i, x1r, x1i = -pr[0], -pi[0], dr[0], di[0]
    y0r, y0i = multiply(dr[1], di[1], x0r, x0i)
    y1r, y1i = multiply_add(dr[1], di[1], x1r, x1i, -pr[1], -pi[1])
    for e in tl.static_range(2, E):
        # (x, y) -> (y, d y - p x) for both columns.
        z0r, z0i = multiply(dr[e], di[e], y0r, y0i)
        z1r, z1i = multiply(dr[e], di[e], y1r, y1i)
        z0r, z0i = subtract_product(z0r, z0i, pr[e], pi[e], x0r, x0i)
        z1r, z1i = subtract_product(z1r, z1i, pr[e], pi[e], x1r, x1i)
        x0r, x0i, x1r, x1i = y0r, y0i, y1r, y1i
        y0r, y0i, y1r, y1i = z0r, z0i, z1r, z1i
        if e % 4 == 3:
            x0r, x0i, x1r, x1i, y0r, y0i, y1r, y1i = normalised(x0r, x0i, x1r, x1i, y0r, y0i, y1r, y1i)
    return x0r, x0i, x1r, x1i, y0r, y0i, y1r, y1i


@triton.jit
def prefix_products(matrices):
    """Products of lanes 0..j, of each lane's matrix as eight tensors (P,)."""
    return tl.associative_scan(matrices, 0, then_moebius)


@triton.jit
def lane_prefixes(dr, di, pr, pi, E: tl.constexpr):
    """What all sites up to the end of lane j do to theta, eight tensors (P,), from tuples of d and p."""
    return prefix_products(lane_products(dr, di, pr, pi, E))
