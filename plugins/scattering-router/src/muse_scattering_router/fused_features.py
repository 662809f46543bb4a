"""Standardised features of the scattering router and their moments in one pass on a GPU; ``router`` and ``moving`` say
the same in many.

Letters: T tokens, H heads, C channels, P blocks of tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

ENTRIES = 2048
"""Tokens × heads of a block."""


class Features(NamedTuple):
    """What the router reads of a resolvent."""

    entries: Tensor
    """(T, 2 C): mean δ, then mean log |θ| of each channel, less the moving mean and by the moving deviation."""
    modulus: Tensor
    """(T,): log |θ|, its mean over channels."""
    sums: Tensor
    """(2 C, 2): Σ over valid tokens of each feature and its square."""


def features(phase: Tensor, theta: Tensor, moments: Tensor, valid: Tensor | None) -> Features:
    """``phase`` (T, H), ``theta`` (T, H, 2), ``moments`` (2 C, 2) moving means and mean squares, ``valid`` (T,)."""
    return Features(*_Features.apply(phase, theta, moments, valid))


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, phase: Tensor, theta: Tensor, moments: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
        phase, theta = phase.contiguous(), theta.contiguous()
        (tokens, heads), channels = phase.shape, len(moments) // 2
        wide = triton.next_power_of_2(heads)
        block = max(1, ENTRIES // wide)
        blocks = triton.cdiv(tokens, block)
        entries = torch.empty(tokens, 2 * channels, device=phase.device)
        modulus = torch.empty(tokens, device=phase.device)
        sums = torch.empty(blocks, 2 * channels, 2, device=phase.device)
        checked = phase if valid is None else valid.contiguous().view(torch.int8)
        _forward[(blocks,)](
            phase, theta, moments, checked, entries, modulus, sums, tokens, heads, channels, valid is not None, block,
            wide,
        )
        ctx.save_for_backward(theta, moments)
        ctx.of_phase = phase.dtype
        sums = sums.sum(0)
        ctx.mark_non_differentiable(modulus, sums)
        ctx.set_materialize_grads(False)
        return entries, modulus, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if gradient is None:
            return None, None, None, None
        theta, moments = ctx.saved_tensors
        tokens, heads, _ = theta.shape
        to_phase = torch.empty(tokens, heads, dtype=ctx.of_phase, device=theta.device)
        to_theta = torch.empty_like(theta)
        wide = triton.next_power_of_2(heads)
        block = max(1, ENTRIES // wide)
        _backward[(triton.cdiv(tokens, block),)](
            theta, moments, gradient.contiguous(), to_phase, to_theta, tokens, heads, len(moments) // 2, block, wide
        )
        return to_phase, to_theta, None, None


@triton.jit
def _channel(head, heads, channels):
    """Channel of a head and the channel's size: the first ``heads % channels`` have one head more."""
    size, larger = heads // channels, heads % channels
    within = head < larger * (size + 1)
    channel = tl.where(within, head // (size + 1), larger + (head - larger * (size + 1)) // size)
    return channel, tl.where(within, size + 1, size).to(tl.float32)


@triton.jit
def _scale(moments, feature):
    """Moving mean, and one over the moving deviation."""
    mean = tl.load(moments + 2 * feature).to(tl.float32)
    square = tl.load(moments + 2 * feature + 1).to(tl.float32)
    return mean, 1.0 / tl.sqrt(tl.maximum(square - mean * mean, 1e-6))


@triton.jit
def _forward(
    phase, theta, moments, valid, entries, modulus, sums, tokens, heads, channels, masked: tl.constexpr,
    BLOCK: tl.constexpr, WIDE: tl.constexpr,
):
    block = tl.program_id(0)
    token, head = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDE)
    there = token < tokens
    loss_mask = there
    if masked:
        loss_mask = there & (tl.load(valid + token, mask=there, other=0) != 0)
    inside = there[:, None] & (head < heads)[None, :]
    place = token.to(tl.int64)[:, None] * heads + head[None, :]
    angle = tl.load(phase + place, mask=inside, other=0.0).to(tl.float32)
    real = tl.load(theta + 2 * place, mask=inside, other=1.0).to(tl.float32)
    imaginary = tl.load(theta + 2 * place + 1, mask=inside, other=0.0).to(tl.float32)
    size = 0.5 * tl.log(tl.maximum(real * real + imaginary * imaginary, 1.1754943508222875e-38))
    own, count = _channel(head, heads, channels)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for channel in range(0, channels):
        member = inside & (own == channel)[None, :]
        number = tl.max(tl.where((own == channel) & (head < heads), count, 0.0), 0)
        for kind in tl.static_range(2):
            feature = kind * channels + channel
            value = tl.sum(tl.where(member, size if kind == 1 else angle, 0.0), 1) / number
            mean, factor = _scale(moments, feature)
            tl.store(entries + token.to(tl.int64) * 2 * channels + feature, (value - mean) * factor, mask=there)
            seen = tl.where(loss_mask, value, 0.0)
            line = sums + (block * 2 * channels + feature) * 2
            tl.store(line, tl.sum(seen, 0))
            tl.store(line + 1, tl.sum(seen * seen, 0))
            if kind == 1:
                total += value
    tl.store(modulus + token, total / channels, mask=there)


@triton.jit
def _backward(
    theta, moments, gradient, to_phase, to_theta, tokens, heads, channels, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    token, head = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDE)
    inside = (token < tokens)[:, None] & (head < heads)[None, :]
    place = token.to(tl.int64)[:, None] * heads + head[None, :]
    own, count = _channel(head, heads, channels)
    own = tl.where(head < heads, own, 0)
    line = gradient + token.to(tl.int64)[:, None] * 2 * channels + own[None, :]
    _, factor = _scale(moments, own)
    to_angle = tl.load(line, mask=inside, other=0.0) * (factor / count)[None, :]
    tl.store(to_phase + place, to_angle.to(to_phase.dtype.element_ty), mask=inside)
    _, factor = _scale(moments, channels + own)
    to_size = tl.load(line + channels, mask=inside, other=0.0) * (factor / count)[None, :]
    real = tl.load(theta + 2 * place, mask=inside, other=1.0).to(tl.float32)
    imaginary = tl.load(theta + 2 * place + 1, mask=inside, other=0.0).to(tl.float32)
    square = real * real + imaginary * imaginary
    ratio = tl.where(square < 1.1754943508222875e-38, 0.0, to_size / tl.maximum(square, 1.1754943508222875e-38))
    tl.store(to_theta + 2 * place, (ratio * real).to(to_theta.dtype.element_ty), mask=inside)
    tl.store(to_theta + 2 * place + 1, (ratio * imaginary).to(to_theta.dtype.element_ty), mask=inside)
