"""The product of a row with a matrix of 8-bit integers, which are read once and never written in another form."""

import triton
import triton.language as tl


@triton.jit
def one_row_kernel(x, values, scale, output, outputs, inputs, R: tl.constexpr, K: tl.constexpr):
    """A program makes R numbers of the one row of output."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    start = row.to(tl.int64)[:, None] * inputs
    products = tl.zeros((R, K), tl.float32)
    for first in range(0, inputs, K):
        column = first + tl.arange(0, K)
        inside = column < inputs
        w = tl.load(values + start + column[None, :], mask=(row < outputs)[:, None] & inside[None, :], other=0)
        products += w.to(tl.float32) * tl.load(x + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    s = tl.load(scale + row, mask=row < outputs, other=0.0).to(tl.float32)
    tl.store(output + row, tl.sum(products, axis=1) * s, mask=row < outputs)
