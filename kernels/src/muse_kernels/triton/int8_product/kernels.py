"""The product of a row with a matrix of 8-bit integers, which are read once and never written in another form."""

import triton
import triton.language as tl


@triton.jit
def read(x, gate, weight, column, inside, inverse, GATE: tl.constexpr, NORM: tl.constexpr, DTYPE: tl.constexpr):
    """The numbers that are multiplied, in float32: rounded to the dtype of the product wherever torch would."""
    u = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        u = u * inverse * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    u = u.to(DTYPE).to(tl.float32)
    if GATE:
        g = tl.load(gate + column, mask=inside, other=0.0).to(tl.float32)
        g = (g / (1.0 + tl.exp(-g))).to(DTYPE).to(tl.float32)
        u = (u * g).to(DTYPE).to(tl.float32)
    return u


@triton.jit
def one_row_kernel(
    x, gate, weight, eps, values, scale, stream, output, outputs, inputs,
    R: tl.constexpr, K: tl.constexpr, GATE: tl.constexpr, NORM: tl.constexpr, ADD: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """A program makes R numbers of the one row of output."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    start = row.to(tl.int64)[:, None] * inputs
    inverse = 1.0
    if NORM:
        squares = tl.zeros((K,), tl.float32)
        for first in range(0, inputs, K):
            column = first + tl.arange(0, K)
            u = tl.load(x + column, mask=column < inputs, other=0.0).to(tl.float32)
            squares += u * u
        inverse = tl.rsqrt(tl.sum(squares, axis=0) / inputs + eps)
    products = tl.zeros((R, K), tl.float32)
    for first in range(0, inputs, K):
        column = first + tl.arange(0, K)
        inside = column < inputs
        w = tl.load(values + start + column[None, :], mask=(row < outputs)[:, None] & inside[None, :], other=0)
        u = read(x, gate, weight, column, inside, inverse, GATE, NORM, DTYPE)
        products += w.to(tl.float32) * u[None, :]
    s = tl.load(scale + row, mask=row < outputs, other=0.0).to(tl.float32)
    y = (tl.sum(products, axis=1) * s).to(DTYPE)
    if ADD:
        y = tl.load(stream + row, mask=row < outputs, other=0.0).to(tl.float32) + y.to(tl.float32)
    tl.store(output + row, y, mask=row < outputs)
