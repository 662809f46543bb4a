"""The resolvent operations by plain torch: the continued fraction theta from the left, then at most one linear
recurrence, each a serial loop over many short chunks side by side, with exact adjoints of any order.

A row of N sites becomes C chunks of T sites; step t of the loop handles site t of every chunk of every row at once. The
adjoint of a linear recurrence is the same recurrence run the other way, so that operator differentiates into itself.

Both are operators of torch's library, so that torch.compile takes their loops as one call each.
"""

from math import isqrt

import torch
from torch import Tensor

from ..arguments import Tridiagonal, check_resolvent
from ..signatures import apply_of, diagonal_of

_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 does not tell
# Wide enough that a vector operation outweighs its launch; more chunks only lengthen the serial carry between them.
_WIDE_ENOUGH = 16_384


def resolvent_diagonal(diagonal, lower, upper, energy) -> Tensor:
    """G_i = theta_i + p_{i+1} theta_i^2 G_{i+1}; arguments, results and errors as `muse_kernels.resolvent_diagonal`.

    Cost and memory O(N). Source: mathematics §1.
    """
    problem = check_resolvent("resolvent_diagonal", diagonal, lower, upper, energy)
    theta = left_green(*continued_fraction(problem))
    p = (problem.lower * problem.upper).to(problem.dtype).expand(problem.shape)
    factors = p[..., 1:] * theta[..., :-1].square()
    factors = torch.cat((factors, torch.zeros_like(theta[..., :1])), dim=-1)
    return linear_scan(theta[..., None], factors, reverse=True)[..., 0]


@diagonal_of
def causal_resolvent_diagonal(problem: Tridiagonal) -> Tensor:
    """theta in chunks side by side; arguments, results and errors as `muse_kernels.causal_resolvent_diagonal`.

    Cost and memory O(N). Source: mathematics §1.
    """
    return left_green(*continued_fraction(problem))


@apply_of
def causal_resolvent_apply(problem: Tridiagonal) -> tuple[Tensor, Tensor]:
    """y_i = theta_i (x_i - l_i y_{i-1}); arguments, results and errors as `muse_kernels.causal_resolvent_apply`.

    Cost and memory O(N M). Source: mathematics §1.
    """
    theta = left_green(*continued_fraction(problem))
    return linear_scan(theta[..., None] * problem.values, -theta * problem.lower, problem.applied), theta


def continued_fraction(problem: Tridiagonal) -> tuple[Tensor, Tensor, Tensor]:
    """d and p, (*lead, N), and theta_{-1}, (*lead,), of checked arguments: what `left_green` takes."""
    d = (problem.diagonal - problem.energy).expand(problem.shape)
    p = (problem.lower * problem.upper).to(problem.dtype).expand(problem.shape)
    theta = d.new_zeros(problem.lead) if problem.theta is None else problem.theta
    return d, p, theta


def left_green(d: Tensor, p: Tensor, initial: Tensor) -> Tensor:
    """theta (*lead, N) of d and p (*lead, N) and theta_{-1} (*lead,), of one complex dtype. Source: mathematics §1."""
    if d.numel() == 0:
        return d * p * initial[..., None]
    sites = d.shape[-1]
    if sites == 1:  # the step of a generation, where the call of an operator costs more than what it computes
        return torch.reciprocal(d - p * initial[..., None])
    operator = _left_green_plain if _for_others() else torch.ops.muse_kernels.left_green.default
    return operator(d.reshape(-1, sites), p.reshape(-1, sites), initial.reshape(-1)).reshape(d.shape)


def _for_others() -> bool:
    """Within torch.export, whose programs run where nobody has registered our operators: the loops stand in them."""
    return not torch.compiler.is_dynamo_compiling() and _is_exporting()


torch.library.define("muse_kernels::left_green", "(Tensor d, Tensor p, Tensor initial) -> Tensor")


@torch.library.impl("muse_kernels::left_green", "default")
def _left_green(d: Tensor, p: Tensor, initial: Tensor) -> Tensor:
    return _left_green_plain(d, p, initial, chunk_length(*d.shape))


def _left_green_plain(d: Tensor, p: Tensor, initial: Tensor, length: int | None = None) -> Tensor:
    """By chunks of `length` sites; None: as for few rows, however many there are."""
    sites = d.shape[1]
    length = length or chunk_length(1, sites)
    d, p = to_chunks(d, length, 1.0), to_chunks(p, length, 0.0)
    theta = initial[:, None]
    if d.shape[2] > 1:
        theta = _left_green_starts(d, p, initial)
    work = torch.empty_like(d[0])
    for i in range(length):  # in place: d becomes theta
        torch.mul(p[i], theta, out=work)
        theta = torch.reciprocal(torch.sub(d[i], work, out=work), out=d[i])
    return from_chunks(d, sites)


def _left_green_starts(d: Tensor, p: Tensor, initial: Tensor) -> Tensor:
    """theta before each chunk, (R, C), from the chunks' products of [[0, 1], [-p, d]] acting on (theta, 1)."""
    top = torch.zeros((2, *d.shape[1:]), dtype=d.dtype, device=d.device)
    bottom = torch.zeros_like(top)
    top[0], bottom[1] = 1.0, 1.0
    limit = 126 if d.dtype == torch.complex64 else 1022
    for i in range(d.shape[0]):
        top, bottom = bottom, torch.mul(bottom, d[i]).addcmul_(top, p[i], value=-1)
        if i % 4 == 3:  # four steps stay far from overflow; normalising at every step would double the cost
            largest = torch.stack([torch.view_as_real(x).abs().amax((0, -1)) for x in (top, bottom)]).amax(0)
            # 2^-e with e the exponent of the largest component of a chunk: exact to multiply by.
            scale = torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent.clamp(-limit, limit))
            top, bottom = top * scale, bottom * scale
    starts = torch.empty_like(d[0])
    theta = initial
    for c in range(d.shape[2]):
        starts[:, c] = theta
        theta = torch.addcmul(top[1, :, c], top[0, :, c], theta) / torch.addcmul(
            bottom[1, :, c], bottom[0, :, c], theta
        )
    return starts


@torch.library.register_fake("muse_kernels::left_green")
def _(d: Tensor, p: Tensor, initial: Tensor) -> Tensor:
    return d.new_empty(d.shape)


def _left_green_save(ctx, inputs, output):
    _, p, initial = inputs
    ctx.save_for_backward(p, initial, output)


def _left_green_adjoint(ctx, gradient):
    p, initial, theta = ctx.saved_tensors
    # w_i = theta_i^2 g_i + alpha_i w_{i+1} with alpha_i = p_{i+1} theta_i^2, on conjugated gradients.
    square = theta * theta
    alpha = torch.cat((p[:, 1:] * square[:, :-1], torch.zeros_like(p[:, :1])), dim=1)
    w = linear_scan((square * gradient.conj())[..., None], alpha, reverse=True)[..., 0]
    before = torch.cat((initial[:, None], theta[:, :-1]), dim=1)
    return -w.conj(), (before * w).conj(), (p[:, 0] * w[:, 0]).conj()


torch.library.register_autograd("muse_kernels::left_green", _left_green_adjoint, setup_context=_left_green_save)


def linear_scan(values: Tensor, factors: Tensor, initial: Tensor | None = None, *, reverse: bool = False) -> Tensor:
    """y_i = x_i + f_i y_{i-1}, or with `reverse` y_i = x_i + f_i y_{i+1}, along dimension -2.

    values x (*lead, N, M), factors f (*lead, N), initial (*lead, M), the y before the first site (None is zero);
    all of one complex dtype and the same leading dimensions. Returns y (*lead, N, M).
    """
    lead, (sites, width) = values.shape[:-2], values.shape[-2:]
    if initial is None:
        initial = values.new_zeros((*lead, width))
    if sites == 1:  # as in `left_green`
        return torch.addcmul(values, factors[..., None], initial[..., None, :])
    operator = _scan_plain if _for_others() else torch.ops.muse_kernels.linear_scan.default
    return operator(
        values.reshape(-1, sites, width) if values.numel() else values.reshape(0, sites, width),
        factors.expand(*lead, sites).reshape(-1, sites) if values.numel() else factors.new_empty(0, sites),
        initial.reshape(-1, width) if values.numel() else initial.new_empty(0, width),
        reverse,
    ).reshape(values.shape)


torch.library.define(
    "muse_kernels::linear_scan", "(Tensor values, Tensor factors, Tensor initial, bool reverse) -> Tensor"
)


@torch.library.impl("muse_kernels::linear_scan", "default")
def _scan(values: Tensor, factors: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    rows, sites, _ = values.shape
    if rows == 0:
        return torch.empty_like(values, memory_format=torch.contiguous_format)
    return _scan_plain(values, factors, initial, reverse, chunk_length(rows, sites))


def _scan_plain(values: Tensor, factors: Tensor, initial: Tensor, reverse: bool, length: int | None = None) -> Tensor:
    """As `_left_green_plain`."""
    sites = values.shape[1]
    length = length or chunk_length(1, sites)
    x = to_chunks(values, length, 0.0)
    f = to_chunks(factors, length, 1.0)[..., None]
    order = range(length - 1, -1, -1) if reverse else range(length)
    chunks = x.shape[2]
    start = initial[:, None]
    if chunks > 1:
        start = _scan_starts(x, f, initial, order, reverse)
    for i in order:  # in place: x becomes y
        start = torch.addcmul(x[i], f[i], start, out=x[i])
    return from_chunks(x, sites)


def _scan_starts(x: Tensor, f: Tensor, initial: Tensor, order: range, reverse: bool) -> Tensor:
    """y before each chunk, (R, C, M), from what each chunk adds and by what it multiplies."""
    added, factor = torch.zeros_like(x[0]), torch.ones_like(f[0])
    for i in order:
        added = torch.addcmul(x[i], f[i], added)
        factor.mul_(f[i])
    starts = torch.empty_like(added)
    y = initial
    for c in reversed(range(x.shape[2])) if reverse else range(x.shape[2]):
        starts[:, c] = y
        y = torch.addcmul(added[:, c], factor[:, c], y)
    return starts


@torch.library.register_fake("muse_kernels::linear_scan")
def _(values: Tensor, factors: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    return values.new_empty(values.shape)


def _scan_save(ctx, inputs, output):
    _, factors, initial, ctx.reverse = inputs
    ctx.save_for_backward(factors, initial, output)


def _scan_adjoint(ctx, gradient):
    factors, initial, y = ctx.saved_tensors
    # The step into site i + 1 carries the gradient back to i, so the factors move by one site and end in zero.
    end = factors.new_zeros(factors[:, :1].shape)
    if ctx.reverse:
        before = torch.cat((y[:, 1:], initial[:, None]), dim=1)
        back = torch.cat((end, factors[:, :-1]), dim=1)
        first = -1
    else:
        before = torch.cat((initial[:, None], y[:, :-1]), dim=1)
        back = torch.cat((factors[:, 1:], end), dim=1)
        first = 0
    v = linear_scan(gradient, back.conj(), reverse=not ctx.reverse)
    return v, (before.conj() * v).sum(-1), factors[:, first, None].conj() * v[:, first], None


torch.library.register_autograd("muse_kernels::linear_scan", _scan_adjoint, setup_context=_scan_save)


def chunk_length(rows: int, sites: int) -> int:
    """T: one chunk where the rows alone fill the vectors, about √N sites where they are few."""
    chunks = max(1, min(isqrt(sites), _WIDE_ENOUGH // max(rows, 1)))
    return -(-sites // chunks)


def to_chunks(x: Tensor, length: int, padding: float) -> Tensor:
    """(R, N, ...) of any strides -> contiguous (T, R, C, ...), the last chunk filled up with `padding`."""
    rows, sites, rest = x.shape[0], x.shape[1], x.shape[2:]
    chunks = -(-sites // length)
    chunked = x.new_empty((length, rows, chunks, *rest))
    whole = sites // length
    chunked[:, :, :whole] = x[:, : whole * length].unflatten(1, (whole, length)).movedim(2, 0)
    if whole < chunks:
        left = sites - whole * length
        chunked[:left, :, whole] = x[:, whole * length :].movedim(1, 0)
        chunked[left:, :, whole] = padding
    return chunked


def from_chunks(chunked: Tensor, sites: int) -> Tensor:
    """The inverse of `to_chunks`: contiguous (R, N, ...)."""
    length, rows, chunks, *rest = chunked.shape
    x = chunked.new_empty((rows, sites, *rest))
    whole = sites // length
    x[:, : whole * length].unflatten(1, (whole, length)).movedim(2, 0).copy_(chunked[:, :, :whole])
    if whole < chunks:
        x[:, whole * length :] = chunked[: sites - whole * length, :, whole].movedim(0, 1)
    return x
