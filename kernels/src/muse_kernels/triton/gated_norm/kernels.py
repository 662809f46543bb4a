"""Kernels of the gated normalisation: a program takes blocks of R whole rows of F features, one after the other.

Rows are numbered (outer, inner), each with a stride, so that heads that lie inside a token's features are rows too.
Complex numbers are two features a number: all real parts, then all imaginary ones.
"""

import triton
import triton.language as tl


@triton.jit
def rows_of_block(
    block, rows, columns, width, features, COMPLEX: tl.constexpr, R: tl.constexpr, F: tl.constexpr
):  # fmt: skip
    """Rows of a block (R, 1); which numbers of them there are (R, F), and which features, (R, 2 F) if complex."""
    row = (block * R + tl.arange(0, R)[:, None]).to(tl.int64)
    here = (row < rows) & (columns < width)
    inside = here
    if COMPLEX:
        inside = (row < rows) & (tl.arange(0, 2 * F)[None, :] < features)
    return row, here, inside


@triton.jit
def row_start(row, inner, outer_stride, inner_stride):
    """Offset of the first number of a row."""
    return (row // inner) * outer_stride + (row % inner) * inner_stride


@triton.jit
def load_rows(pointer, start, columns, inside, COMPLEX: tl.constexpr, R: tl.constexpr, F: tl.constexpr):
    """(R, F) real parts and imaginary parts as float32, zero outside; those of real rows are zeros."""
    if COMPLEX:
        pairs = tl.arange(0, 2 * F)[None, :]
        x = tl.load(pointer + 2 * start + pairs, mask=inside, other=0.0)
        return tl.split(tl.reshape(x, (R, F, 2)))
    else:
        x = tl.load(pointer + start + columns, mask=inside, other=0.0).to(tl.float32)
        return x, tl.zeros_like(x)


@triton.jit
def normalised(xr, xi, features, epsilon, COMPLEX: tl.constexpr):
    """Both parts over the root mean square of their row, and its inverse (R, 1)."""
    power = tl.sum(xr * xr, axis=1, keep_dims=True)
    if COMPLEX:
        power += tl.sum(xi * xi, axis=1, keep_dims=True)
    scale = 1.0 / tl.sqrt(power / features + epsilon)
    return xr * scale, xi * scale, scale


@triton.jit
def load_gain(weight, columns, width, COMPLEX: tl.constexpr, NORM: tl.constexpr):
    """(1, F) gains of both parts; ones without a normalisation."""
    wr = tl.full(columns.shape, 1.0, tl.float32)
    wi = wr
    if NORM:
        wr = tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)
        if COMPLEX:
            wi = tl.load(weight + width + columns, mask=columns < width, other=0.0).to(tl.float32)
    return wr, wi


@triton.jit
def gated_norm_kernel(
    x, weight, gate, output, rows, inner, width, x_outer, x_inner, gate_outer, gate_inner, epsilon,
    COMPLEX: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr, R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """output (rows, width), or (rows, 2 width) for complex x; contiguous."""
    columns = tl.arange(0, F)[None, :]
    wr, wi = load_gain(weight, columns, width, COMPLEX, NORM)
    features = width * (2 if COMPLEX else 1)
    for block in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row, here, inside = rows_of_block(block, rows, columns, width, features, COMPLEX, R, F)
        start = row_start(row, inner, x_outer, x_inner)
        yr, yi = load_rows(x, start, columns, inside, COMPLEX, R, F)
        if NORM:
            yr, yi, _ = normalised(yr, yi, features, epsilon, COMPLEX)
            yr, yi = yr * wr, yi * wi
        if GATE:
            at = row_start(row, inner, gate_outer, gate_inner)
            g = tl.load(gate + at + columns, mask=here, other=0.0).to(tl.float32)
            opened = g * tl.sigmoid(g)
            yr, yi = yr * opened, yi * opened
        tl.store(output + row * features + columns, yr, mask=here)
        if COMPLEX:
            tl.store(output + row * features + width + columns, yi, mask=here)


@triton.jit
def gated_norm_backward_kernel(
    x, weight, gate, gradient, dx, dweight, dgate, rows, inner, width, x_outer, x_inner, gate_outer, gate_inner,
    gradient_outer, gradient_inner, epsilon,
    COMPLEX: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr, R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """dx and dgate, contiguous as x and the gate; dweight one share a program, (programs, features)."""
    columns = tl.arange(0, F)[None, :]
    wr, wi = load_gain(weight, columns, width, COMPLEX, NORM)
    features = width * (2 if COMPLEX else 1)
    # Summed over the rows of a block at the end alone: until then nothing moves between threads.
    sum_r, sum_i = tl.zeros((R, F), tl.float32), tl.zeros((R, F), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row, here, inside = rows_of_block(block, rows, columns, width, features, COMPLEX, R, F)
        start = row_start(row, inner, x_outer, x_inner)
        nr, ni = load_rows(x, start, columns, inside, COMPLEX, R, F)
        scale = tl.full((R, 1), 1.0, tl.float32)
        if NORM:
            nr, ni, scale = normalised(nr, ni, features, epsilon, COMPLEX)
        at = row_start(row, inner, gradient_outer, gradient_inner)
        gr = tl.load(gradient + at + columns, mask=here, other=0.0).to(tl.float32)
        gi = tl.zeros_like(gr)
        if COMPLEX:
            gi = tl.load(gradient + at + width + columns, mask=here, other=0.0).to(tl.float32)
        if GATE:
            at = row_start(row, inner, gate_outer, gate_inner)
            g = tl.load(gate + at + columns, mask=here, other=0.0).to(tl.float32)
            share = tl.sigmoid(g)
            dg = (gr * nr * wr + gi * ni * wi) * share * (1.0 + g * (1.0 - share))
            tl.store(dgate + row * width + columns, dg, mask=here)
            gr, gi = gr * g * share, gi * g * share
        if NORM:
            sum_r += gr * nr
            sum_i += gi * ni
            gr, gi = gr * wr, gi * wi
            along = tl.sum(gr * nr + gi * ni, axis=1, keep_dims=True) / features
            gr, gi = scale * (gr - nr * along), scale * (gi - ni * along)
        if COMPLEX:
            pairs = tl.reshape(tl.join(gr, gi), (R, 2 * F))
            tl.store(dx + row * features + tl.arange(0, 2 * F)[None, :], pairs, mask=inside)
        else:
            tl.store(dx + row * features + columns, gr, mask=here)
    if NORM:
        column = tl.arange(0, F)
        share = dweight + tl.program_id(0).to(tl.int64) * features
        tl.store(share + column, tl.sum(sum_r, axis=0), mask=column < width)
        if COMPLEX:
            tl.store(share + width + column, tl.sum(sum_i, axis=0), mask=column < width)
