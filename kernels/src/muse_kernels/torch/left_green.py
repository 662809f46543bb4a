"""The continued fraction theta_i = 1 / (d_i - p_i theta_{i-1}) by plain torch, with its exact adjoint."""

import torch
from torch import Tensor

from ..resolvent_arguments import Tridiagonal
from .chunks import chunk_length, from_chunks, power_of_two, to_chunks
from .linear_scan import linear_scan


def left_green_of(problem: Tridiagonal) -> Tensor:
    """theta of checked arguments, (*lead, N) complex."""
    d = (problem.diagonal - problem.energy).expand(problem.shape)
    p = (problem.lower * problem.upper).to(problem.dtype).expand(problem.shape)
    theta = d.new_zeros(problem.lead) if problem.theta is None else problem.theta
    return left_green(d, p, theta)


def left_green(d: Tensor, p: Tensor, initial: Tensor) -> Tensor:
    """theta (*lead, N) of d and p (*lead, N) and theta_{-1} (*lead,), of one complex dtype. Source: mathematics §1."""
    if d.numel() == 0:
        return d * p * initial[..., None]
    sites = d.shape[-1]
    return _left_green(d.reshape(-1, sites), p.reshape(-1, sites), initial.reshape(-1)).reshape(d.shape)


@torch.library.custom_op("muse_kernels::left_green", mutates_args=())
def _left_green(d: Tensor, p: Tensor, initial: Tensor) -> Tensor:
    rows, sites = d.shape
    if sites == 1:  # the step of a generation
        return torch.reciprocal(d - p * initial[:, None])
    length = chunk_length(rows, sites)
    d, p = to_chunks(d, length, 1.0), to_chunks(p, length, 0.0)
    theta = initial[:, None]
    if d.shape[2] > 1:
        theta = _chunk_starts(d, p, initial)
    work = torch.empty_like(d[0])
    for i in range(length):  # in place: d becomes theta
        torch.mul(p[i], theta, out=work)
        theta = torch.reciprocal(torch.sub(d[i], work, out=work), out=d[i])
    return from_chunks(d, sites)


def _chunk_starts(d: Tensor, p: Tensor, initial: Tensor) -> Tensor:
    """theta before each chunk, (R, C), from the chunks' products of [[0, 1], [-p, d]] acting on (theta, 1)."""
    top = torch.zeros((2, *d.shape[1:]), dtype=d.dtype, device=d.device)
    bottom = torch.zeros_like(top)
    top[0], bottom[1] = 1.0, 1.0
    for i in range(d.shape[0]):
        top, bottom = bottom, torch.mul(bottom, d[i]).addcmul_(top, p[i], value=-1)
        if i % 4 == 3:  # four steps stay far from overflow; normalising at every step would double the cost
            scale = power_of_two(top, bottom)
            top, bottom = top * scale, bottom * scale
    starts = torch.empty_like(d[0])
    theta = initial
    for c in range(d.shape[2]):
        starts[:, c] = theta
        theta = torch.addcmul(top[1, :, c], top[0, :, c], theta) / torch.addcmul(
            bottom[1, :, c], bottom[0, :, c], theta
        )
    return starts


@_left_green.register_fake
def _(d: Tensor, p: Tensor, initial: Tensor) -> Tensor:
    return d.new_empty(d.shape)


def _save(ctx, inputs, output):
    _, p, initial = inputs
    ctx.save_for_backward(p, initial, output)


def _adjoint(ctx, gradient):
    p, initial, theta = ctx.saved_tensors
    # w_i = theta_i^2 g_i + alpha_i w_{i+1} with alpha_i = p_{i+1} theta_i^2, on conjugated gradients.
    square = theta * theta
    alpha = torch.cat((p[:, 1:] * square[:, :-1], torch.zeros_like(p[:, :1])), dim=1)
    w = linear_scan((square * gradient.conj())[..., None], alpha, reverse=True)[..., 0]
    before = torch.cat((initial[:, None], theta[:, :-1]), dim=1)
    return -w.conj(), (before * w).conj(), (p[:, 0] * w[:, 0]).conj()


_left_green.register_autograd(_adjoint, setup_context=_save)
