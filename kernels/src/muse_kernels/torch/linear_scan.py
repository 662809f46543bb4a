"""First-order linear recurrences over complex sequences, exact to any order of differentiation.

The adjoint of a linear recurrence is the same recurrence run the other way, so the operator differentiates into itself.
"""

import torch
from torch import Tensor

from .chunks import chunk_length, from_chunks, to_chunks


def linear_scan(values: Tensor, factors: Tensor, initial: Tensor | None = None, *, reverse: bool = False) -> Tensor:
    """y_i = x_i + f_i y_{i-1}, or with `reverse` y_i = x_i + f_i y_{i+1}, along dimension -2.

    values x (*lead, N, M), factors f (*lead, N), initial (*lead, M), the y before the first site (None is zero);
    all of one complex dtype and the same leading dimensions. Returns y (*lead, N, M).
    """
    lead, (sites, width) = values.shape[:-2], values.shape[-2:]
    if initial is None:
        initial = values.new_zeros((*lead, width))
    return _scan(
        values.reshape(-1, sites, width) if values.numel() else values.reshape(0, sites, width),
        factors.expand(*lead, sites).reshape(-1, sites) if values.numel() else factors.new_empty(0, sites),
        initial.reshape(-1, width) if values.numel() else initial.new_empty(0, width),
        reverse,
    ).reshape(values.shape)


@torch.library.custom_op("muse_kernels::linear_scan", mutates_args=())
def _scan(values: Tensor, factors: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    rows, sites, _ = values.shape
    if rows == 0:
        return torch.empty_like(values, memory_format=torch.contiguous_format)
    if sites == 1:  # the step of a generation
        return torch.addcmul(values, factors[..., None], initial[:, None]).contiguous()
    length = chunk_length(rows, sites)
    x = to_chunks(values, length, 0.0)
    f = to_chunks(factors, length, 1.0)[..., None]
    order = range(length - 1, -1, -1) if reverse else range(length)
    chunks = x.shape[2]
    start = initial[:, None]
    if chunks > 1:
        start = _chunk_starts(x, f, initial, order, reverse)
    for i in order:  # in place: x becomes y
        start = torch.addcmul(x[i], f[i], start, out=x[i])
    return from_chunks(x, sites)


def _chunk_starts(x: Tensor, f: Tensor, initial: Tensor, order: range, reverse: bool) -> Tensor:
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


@_scan.register_fake
def _(values: Tensor, factors: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    return values.new_empty(values.shape)


def _save(ctx, inputs, output):
    _, factors, initial, ctx.reverse = inputs
    ctx.save_for_backward(factors, initial, output)


def _adjoint(ctx, gradient):
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


_scan.register_autograd(_adjoint, setup_context=_save)
