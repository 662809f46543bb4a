"""From ‖p_t‖² to the scales s_t and back: passes over (B, H, N), in float64, and over the output.

Q is a sum within a document: a scan of pairs (sum, whether a document started), since a start forgets what came before.
"""

import triton
import triton.language as tl


@triton.jit
def _joined(a, started_a, b, started_b):
    return tl.where(started_b != 0, b, a + b), started_a | started_b


@triton.jit
def scales_kernel(
    squares, bound, bound_b, bound_n, bound_h, initial, resets, scale, sums, by_before, by_after, by_bound, tokens,
    heads, knee, INITIAL: tl.constexpr, RESETS: tl.constexpr, GRADIENT: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """One program a head of a row: s_t, Q_t and, for the backward pass, ∂s_t by Q_{t−1}, Q_t and b_t."""
    row = tl.program_id(0)
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    base = row.to(tl.int64) * tokens
    carried = tl.load(initial + row).to(tl.float64) if INITIAL else tl.zeros((), tl.float64)
    place = tl.arange(0, T)
    for start in range(0, tokens, T):
        inside = start + place < tokens
        own = tl.load(squares + base + start + place, mask=inside, other=0.0).to(tl.float64)
        started = tl.zeros((T,), tl.int32)
        if RESETS:
            started = tl.load(resets + b * tokens + start + place, mask=inside, other=0).to(tl.int32)
        after, new = tl.associative_scan((own, started), 0, _joined)
        after = tl.where(new != 0, after, after + carried)
        carried = tl.sum(tl.where(place == tl.minimum(T, tokens - start) - 1, after, 0.0), 0)
        root = tl.load(bound + b * bound_b + h * bound_h + (start + place) * bound_n, mask=inside, other=1.0)
        root = root.to(tl.float64)
        limit = root * root
        before = after - own
        lower, upper, width = before / limit, after / limit, own / limit
        above = tl.maximum(upper - knee, 0.0)
        width = tl.where(width > 0, width, 1.0)
        past, onward = tl.maximum(lower, knee) + 1 - 2 * knee, above + 1 - knee
        both = (1 - knee) * (1 - knee) / (past * onward)
        across = 1 - above * above / (onward * width)
        beyond = lower >= knee
        ratio = tl.where(beyond, both, across)
        value = tl.sqrt(ratio)
        tl.store(scale + base + start + place, value.to(tl.float32), mask=inside)
        tl.store(sums + base + start + place, after.to(tl.float32), mask=inside)
        if GRADIENT:
            share = above / (onward * width)
            lower_by = tl.where(beyond, -both / past, -share * above / width)
            rise = share * (2 - above / width - above / onward)
            upper_by = tl.where(beyond, -both / onward, -rise)
            upper_by = tl.where(beyond | (above > 0), upper_by, 0.0)
            lower_by = tl.where(beyond | (above > 0), lower_by, 0.0)
            half = 0.5 / (value * limit)
            to_before, to_after = lower_by * half, upper_by * half
            to_bound = -2 * (to_before * before + to_after * after) / root
            tl.store(by_before + base + start + place, to_before.to(tl.float32), mask=inside)
            tl.store(by_after + base + start + place, to_after.to(tl.float32), mask=inside)
            tl.store(by_bound + base + start + place, to_bound.to(tl.float32), mask=inside)


@triton.jit
def scaled_kernel(output, scale, tokens, heads, width, T: tl.constexpr, M: tl.constexpr):
    """Multiplies the output (B, N, H, M) by the scale (B, H, N) in place."""
    blocks = tl.cdiv(tokens, T)
    row = tl.program_id(0) // blocks
    token = tl.program_id(0) % blocks * T + tl.arange(0, T)
    b, h = (row // heads).to(tl.int64), row % heads
    lanes = tl.arange(0, M)
    inside = token < tokens
    places = (b * tokens + token[:, None]) * (heads * width) + h * width + lanes[None, :]
    mask = inside[:, None] & (lanes[None, :] < width)
    factor = tl.load(scale + row.to(tl.int64) * tokens + token, mask=inside, other=0.0)
    mixed = tl.load(output + places, mask=mask, other=0.0).to(tl.float32) * factor[:, None]
    tl.store(output + places, mixed.to(output.dtype.element_ty), mask=mask)


@triton.jit
def inner_kernel(
    output, gradient, scale, to_scale, scale_b, scale_n, scale_h, inner, to_scales, tokens, heads, width,
    SCALE: tl.constexpr, T: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """δ_t, the inner product of the output and its gradient (B, N, H, M), and what reaches s_t: (B, H, N) each."""
    blocks = tl.cdiv(tokens, T)
    row = tl.program_id(0) // blocks
    token = tl.program_id(0) % blocks * T + tl.arange(0, T)
    b, h = (row // heads).to(tl.int64), row % heads
    lanes = tl.arange(0, M)
    inside = token < tokens
    places = (b * tokens + token[:, None]) * (heads * width) + h * width + lanes[None, :]
    mask = inside[:, None] & (lanes[None, :] < width)
    mixed = tl.load(output + places, mask=mask, other=0.0).to(tl.float32)
    product = tl.sum(mixed * tl.load(gradient + places, mask=mask, other=0.0).to(tl.float32), 1)
    own = row.to(tl.int64) * tokens + token
    given = product / tl.load(scale + own, mask=inside, other=1.0)
    if SCALE:
        given += tl.load(to_scale + b * scale_b + h * scale_h + token * scale_n, mask=inside, other=0.0)
    tl.store(inner + own, product, mask=inside)
    tl.store(to_scales + own, given, mask=inside)


@triton.jit
def scales_gradient_kernel(
    to_scales, to_sums, sums_b, sums_n, sums_h, by_before, by_after, by_bound, squares, inner, resets, to_squares,
    means, to_bound, to_initial, tokens, heads, SUMS: tl.constexpr, RESETS: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """One program a head of a row, backwards: c_t = 2 ∂/∂‖p_t‖², Δ_t = δ_t + c_t ‖p_t‖² and the bound's gradient.

    What reaches Q_r reaches ‖p_t‖² of all t ≤ r of the document, and Q_{r−1} of all t < r.
    """
    row = tl.program_id(0)
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    base = row.to(tl.int64) * tokens
    carried = tl.zeros((), tl.float64)
    place = tl.arange(0, T)
    blocks = tl.cdiv(tokens, T)
    for back in range(0, blocks):
        start = (blocks - 1 - back) * T
        token = start + place
        inside = token < tokens
        given = tl.load(to_scales + base + token, mask=inside, other=0.0).to(tl.float64)
        before = given * tl.load(by_before + base + token, mask=inside, other=0.0).to(tl.float64)
        total = before + given * tl.load(by_after + base + token, mask=inside, other=0.0).to(tl.float64)
        if SUMS:
            total += tl.load(to_sums + b * sums_b + h * sums_h + token * sums_n, mask=inside, other=0.0).to(tl.float64)
        ends = tl.zeros((T,), tl.int32)
        if RESETS:
            ends = tl.load(resets + b * tokens + token + 1, mask=token + 1 < tokens, other=0).to(tl.int32)
        later, new = tl.associative_scan((total, ends), 0, _joined, reverse=True)
        later = tl.where(new != 0, later, later + carried)
        carried = tl.sum(tl.where(place == 0, later, 0.0), 0)
        coefficient = 2 * (later - before)
        own = tl.load(squares + base + token, mask=inside, other=0.0).to(tl.float64)
        mean = tl.load(inner + base + token, mask=inside, other=0.0).to(tl.float64) + coefficient * own
        bound = given * tl.load(by_bound + base + token, mask=inside, other=0.0).to(tl.float64)
        tl.store(to_squares + base + token, coefficient.to(tl.float32), mask=inside)
        tl.store(means + base + token, mean.to(tl.float32), mask=inside)
        tl.store(to_bound + base + token, bound.to(tl.float32), mask=inside)
    if RESETS:
        carried = tl.where(tl.load(resets + b * tokens) != 0, 0.0, carried)
    tl.store(to_initial + row, carried.to(tl.float32))
