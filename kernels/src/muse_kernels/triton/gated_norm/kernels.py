"""Kernels of the gated normalisation: a program takes blocks of R whole rows of F features, one after the other.

Rows are numbered (outer, inner), each with a stride, so that heads that lie inside a token's features are rows too.
Complex numbers are two features a number: all real parts, then all imaginary ones. AHEAD: what the next block needs is
loaded before this one is computed, in the precision of memory.
"""

import triton
import triton.language as tl


@triton.jit
def row_numbers(block, inner, R: tl.constexpr):
    """Rows of a block (R, 1), and which outer and which inner ones they are. Divided in 32 bits where they hold all
    rows: a division of 64 bits is a hundred instructions."""
    row = block * R + tl.arange(0, R)[:, None]
    outer = row // inner
    return row.to(tl.int64), outer.to(tl.int64), (row - outer * inner).to(tl.int64)


@triton.jit
def row_block(
    x, gate, gradient, block, rows, inner, width, x_outer, x_inner, gate_outer, gate_inner, gradient_outer,
    gradient_inner, COMPLEX: tl.constexpr, GATE: tl.constexpr, BACK: tl.constexpr, R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """x (R, F), or (R, 2 F) as pairs, the gate and, going BACK, both parts of the gradient (R, F) as memory has them;
    zero outside. Another stands in the place of what is not there."""
    row, outer, within = row_numbers(block, inner, R)
    columns = tl.arange(0, F)[None, :]
    here = (row < rows) & (columns < width)
    start = outer * x_outer + within * x_inner
    if COMPLEX:
        pairs = tl.arange(0, 2 * F)[None, :]
        found = tl.load(x + 2 * start + pairs, mask=(row < rows) & (pairs < 2 * width), other=0.0)
    else:
        found = tl.load(x + start + columns, mask=here, other=0.0)
    g = found
    if GATE:
        g = tl.load(gate + outer * gate_outer + within * gate_inner + columns, mask=here, other=0.0)
    if BACK:
        at = gradient + outer * gradient_outer + within * gradient_inner + columns
        gr = tl.load(at, mask=here, other=0.0)
        gi = gr
        if COMPLEX:
            gi = tl.load(at + width, mask=here, other=0.0)
        return found, g, gr, gi
    else:
        return found, g


@triton.jit
def parts(x, COMPLEX: tl.constexpr, R: tl.constexpr, F: tl.constexpr):
    """Real and imaginary parts as float32; those of real rows are zeros."""
    if COMPLEX:
        return tl.split(tl.reshape(x, (R, F, 2)))
    else:
        return x.to(tl.float32), tl.zeros((R, F), tl.float32)


@triton.jit
def normalised(xr, xi, features, epsilon, COMPLEX: tl.constexpr):
    """Both parts over the root mean square of their row, and its inverse (R, 1)."""
    power = xr * xr
    if COMPLEX:
        power += xi * xi
    scale = 1.0 / tl.sqrt(tl.sum(power, axis=1, keep_dims=True) / features + epsilon)
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
    x, weight, gate, behind, output, rows, inner, width, x_outer, x_inner, gate_outer, gate_inner, behind_outer,
    behind_inner, more, epsilon,
    COMPLEX: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr, BEHIND: tl.constexpr, AHEAD: tl.constexpr,
    R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """output (rows, width + more), or (rows, 2 width + more) for complex x; contiguous. BEHIND: a power of two that
    holds the `more` features that are copied behind the others, or zero."""
    columns = tl.arange(0, F)[None, :]
    wr, wi = load_gain(weight, columns, width, COMPLEX, NORM)
    features = width * (2 if COMPLEX else 1)
    first, programs = tl.program_id(0), tl.num_programs(0)
    if AHEAD:
        held = row_block(
            x, gate, x, first, rows, inner, width, x_outer, x_inner, gate_outer, gate_inner, 0, 0,
            COMPLEX, GATE, False, R, F,
        )  # fmt: skip
    for block in range(first, tl.cdiv(rows, R), programs):
        if AHEAD:
            raw, g = held
        following = block + programs if AHEAD else block
        held = row_block(
            x, gate, x, following, rows, inner, width, x_outer, x_inner, gate_outer, gate_inner, 0, 0,
            COMPLEX, GATE, False, R, F,
        )  # fmt: skip
        if not AHEAD:
            raw, g = held
        row, outer, within = row_numbers(block, inner, R)
        here = (row < rows) & (columns < width)
        yr, yi = parts(raw, COMPLEX, R, F)
        if NORM:
            yr, yi, _ = normalised(yr, yi, features, epsilon, COMPLEX)
            yr, yi = yr * wr, yi * wi
        if GATE:
            g = g.to(tl.float32)
            opened = g * tl.sigmoid(g)
            yr, yi = yr * opened, yi * opened
        to = output + row * (features + more)
        tl.store(to + columns, yr, mask=here)
        if COMPLEX:
            tl.store(to + width + columns, yi, mask=here)
        if BEHIND:
            others = tl.arange(0, BEHIND)[None, :]
            here = (row < rows) & (others < more)
            y = tl.load(behind + outer * behind_outer + within * behind_inner + others, mask=here)
            tl.store(to + features + others, y, mask=here)


@triton.jit
def gated_norm_backward_kernel(
    x, weight, gate, gradient, dx, dweight, dgate, rows, inner, width, x_outer, x_inner, gate_outer, gate_inner,
    gradient_outer, gradient_inner, epsilon,
    COMPLEX: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr, AHEAD: tl.constexpr, R: tl.constexpr,
    F: tl.constexpr,
):  # fmt: skip
    """dx and dgate, contiguous as x and the gate; dweight one share a program, (programs, features)."""
    columns = tl.arange(0, F)[None, :]
    wr, wi = load_gain(weight, columns, width, COMPLEX, NORM)
    features = width * (2 if COMPLEX else 1)
    first, programs = tl.program_id(0), tl.num_programs(0)
    # Summed over the rows of a block at the end alone: until then nothing moves between threads.
    sum_r, sum_i = tl.zeros((R, F), tl.float32), tl.zeros((R, F), tl.float32)
    if AHEAD:
        held = row_block(
            x, gate, gradient, first, rows, inner, width, x_outer, x_inner, gate_outer, gate_inner, gradient_outer,
            gradient_inner, COMPLEX, GATE, True, R, F,
        )  # fmt: skip
    for block in range(first, tl.cdiv(rows, R), programs):
        if AHEAD:
            raw, g, gr, gi = held
        following = block + programs if AHEAD else block
        held = row_block(
            x, gate, gradient, following, rows, inner, width, x_outer, x_inner, gate_outer, gate_inner,
            gradient_outer, gradient_inner, COMPLEX, GATE, True, R, F,
        )  # fmt: skip
        if not AHEAD:
            raw, g, gr, gi = held
        row = (block * R + tl.arange(0, R)[:, None]).to(tl.int64)
        here = (row < rows) & (columns < width)
        nr, ni = parts(raw, COMPLEX, R, F)
        scale = tl.full((R, 1), 1.0, tl.float32)
        if NORM:
            nr, ni, scale = normalised(nr, ni, features, epsilon, COMPLEX)
        gr = gr.to(tl.float32)
        gi = gi.to(tl.float32) if COMPLEX else tl.zeros((R, F), tl.float32)
        if GATE:
            g = g.to(tl.float32)
            share = tl.sigmoid(g)
            dg = gr * nr * wr
            if COMPLEX:
                dg += gi * ni * wi
            tl.store(dgate + row * width + columns, dg * share * (1.0 + g * (1.0 - share)), mask=here)
            opened = g * share
            gr, gi = gr * opened, gi * opened
        if NORM:
            sum_r += gr * nr
            gr = gr * wr
            along = gr * nr
            if COMPLEX:
                sum_i += gi * ni
                gi = gi * wi
                along += gi * ni
            along = tl.sum(along, axis=1, keep_dims=True) / features
            gr = scale * (gr - nr * along)
            if COMPLEX:
                gi = scale * (gi - ni * along)
        if COMPLEX:
            pairs = tl.arange(0, 2 * F)[None, :]
            both = tl.reshape(tl.join(gr, gi), (R, 2 * F))
            tl.store(dx + row * features + pairs, both, mask=(row < rows) & (pairs < features))
        else:
            tl.store(dx + row * features + columns, gr, mask=here)
    if NORM:
        column = tl.arange(0, F)
        share = dweight + first.to(tl.int64) * features
        tl.store(share + column, tl.sum(sum_r, axis=0), mask=column < width)
        if COMPLEX:
            tl.store(share + width + column, tl.sum(sum_i, axis=0), mask=column < width)
