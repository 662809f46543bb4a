"""Losses and metrics of a routing, and the order of rows, in three kernels on a GPU; ``load`` and ``dispatch`` say the
same in many.

Letters: T tokens, K slots, E experts, P blocks of tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

ENTRIES = 4096
"""Entries of a block's table of choices, tokens × slots × experts, that stay in registers."""
STATISTICS = 5
"""Numbers before the loads: entropy, load entropy, busiest, slots, dropped."""


class Places(NamedTuple):
    """Where each slot's row stands among rows sorted by expert."""

    row: Tensor
    """(T, K) int32; −1 for an unused slot."""
    ends: Tensor
    """(E,) int32: where each expert's rows end."""


class Weighed(NamedTuple):
    """What a routing costs, what is measured of it, and where its rows go."""

    balance: Tensor
    z: Tensor
    statistics: Tensor
    """(5 + E,): see ``STATISTICS``."""
    row: Tensor
    ends: Tensor


def weigh(
    logits: Tensor, expert: Tensor, valid: Tensor | None, *, balance: float, z_loss: float
) -> Weighed:
    """``logits`` (T, E), ``expert`` (T, K) with −1 for an unused slot, ``valid`` (T,) bool. See ``load.weigh``."""
    return Weighed(*_Weigh.apply(logits, expert, valid, balance, z_loss))


def block_of(slots: int, experts: int) -> int:
    """Tokens of a block; 0 where not even one token's choices fit."""
    return min(128, ENTRIES // (triton.next_power_of_2(slots) * triton.next_power_of_2(experts)))


class _Weigh(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, expert: Tensor, valid: Tensor | None, balance: float, z_loss: float
    ) -> tuple[Tensor, ...]:
        logits, expert = logits.contiguous(), expert.contiguous()
        (tokens, experts), slots = logits.shape, expert.shape[1]
        block, wide = block_of(slots, experts), triton.next_power_of_2(experts)
        blocks = triton.cdiv(tokens, block)
        sums = logits.new_empty(blocks, wide + 4, dtype=torch.float32)
        counts = torch.empty(blocks, wide, dtype=torch.int32, device=logits.device)
        losses = [logits.new_empty((), dtype=torch.float32) for _ in range(2)]
        statistics = logits.new_empty(STATISTICS + experts, dtype=torch.float32)
        row = torch.empty(tokens, slots, dtype=torch.int32, device=logits.device)
        ends = torch.empty(experts, dtype=torch.int32, device=logits.device)
        checked = expert if valid is None else valid.contiguous().view(torch.int8)
        _tally[(blocks,)](
            logits, expert, checked, sums, counts, tokens, slots, experts, valid is not None, block, wide
        )
        _settle[(1,)](
            sums, counts, *losses, statistics, ends, blocks, experts, balance, z_loss,
            max(1, ENTRIES // wide // 4), wide, num_warps=4,
        )
        _place[(blocks,)](expert, counts, row, tokens, slots, experts, block, triton.next_power_of_2(slots), wide)
        ctx.save_for_backward(logits, checked, statistics)
        ctx.masked, ctx.scales = valid is not None, (balance * experts, 2 * z_loss)
        ctx.mark_non_differentiable(statistics, row, ends)
        ctx.set_materialize_grads(False)  # three fills a step, for what has no gradient
        return *losses, statistics, row, ends

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_balance: Tensor | None, to_z: Tensor | None, *_: Any) -> tuple[Any, ...]:
        logits, valid, statistics = ctx.saved_tensors
        to_balance, to_z = (statistics.new_zeros(()) if one is None else one for one in (to_balance, to_z))
        tokens, experts = logits.shape
        wide = triton.next_power_of_2(experts)
        block = block_of(1, experts)
        gradient = torch.empty_like(logits)
        _backward[(triton.cdiv(tokens, block),)](
            logits, valid, statistics, to_balance, to_z, gradient, tokens, experts, *ctx.scales, ctx.masked,
            STATISTICS, block, wide,
        )
        return gradient, None, None, None, None


@triton.jit
def _softmax(logits, inside):
    """log Σ exp (B,) and probabilities (B, E), also in rows of −∞ beyond the end."""
    score = tl.load(logits, mask=inside, other=-float("inf")).to(tl.float32)
    largest = tl.max(score, 1)
    largest = tl.where(largest == -float("inf"), 0.0, largest)
    power = tl.exp(score - largest[:, None])
    total = tl.sum(power, 1)
    total = tl.where(total == 0, 1.0, total)
    return score, largest + tl.log(total), power / total[:, None]


@triton.jit
def _tally(
    logits, expert, valid, sums, counts, tokens, slots, experts, masked: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Of a block of tokens: Σ p by expert, Σ log² Σ exp, Σ entropy, tokens; and choices by expert."""
    block = tl.program_id(0)
    token, column = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDE)
    there = token < tokens
    inside = there[:, None] & (column < experts)[None, :]
    score, partition, share = _softmax(logits + token.to(tl.int64)[:, None] * experts + column[None, :], inside)
    loss_mask = there
    if masked:
        loss_mask = there & (tl.load(valid + token, mask=there, other=0) != 0)
    mixed = tl.where(inside, share * score, 0.0)
    entropy = tl.where(loss_mask, partition - tl.sum(mixed, 1), 0.0)
    squared = tl.where(loss_mask, partition * partition, 0.0)
    share = tl.where(loss_mask[:, None], share, 0.0)
    line = sums + block * (WIDE + 4)
    tl.store(line + column, tl.sum(share, 0))
    tl.store(line + WIDE, tl.sum(squared, 0))
    tl.store(line + WIDE + 1, tl.sum(entropy, 0))
    tl.store(line + WIDE + 2, tl.sum(loss_mask.to(tl.float32), 0))
    number = tl.zeros((WIDE,), dtype=tl.int32)
    for slot in range(0, slots):
        chosen = tl.load(expert + token.to(tl.int64) * slots + slot, mask=there, other=-1).to(tl.int32)
        number += tl.sum((chosen[:, None] == column[None, :]).to(tl.int32), 0)
    tl.store(counts + block * WIDE + column, number)


@triton.jit
def _settle(
    sums, counts, balance, z, statistics, ends, blocks, experts, balance_scale, z_scale, BLOCKS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Sums over blocks; the losses and metrics; and in ``counts`` the first row of a block's choices of an expert."""
    column = tl.arange(0, WIDE)
    number = tl.zeros((WIDE,), dtype=tl.int32)
    share = tl.zeros((WIDE,), dtype=tl.float32)
    squared = 0.0
    entropy = 0.0
    tokens = 0.0
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        there = block < blocks
        place = block[:, None] * WIDE + column[None, :]
        number += tl.sum(tl.load(counts + place, mask=there[:, None], other=0), 0)
        line = sums + block * (WIDE + 4)
        share += tl.sum(tl.load(line[:, None] + column[None, :], mask=there[:, None], other=0.0), 0)
        squared += tl.sum(tl.load(line + WIDE, mask=there, other=0.0), 0)
        entropy += tl.sum(tl.load(line + WIDE + 1, mask=there, other=0.0), 0)
        tokens += tl.sum(tl.load(line + WIDE + 2, mask=there, other=0.0), 0)
    until = tl.cumsum(number, 0)
    tl.store(ends + column, until, mask=column < experts)
    chosen = tl.maximum(tl.sum(number, 0), 1).to(tl.float32)
    load = number.to(tl.float32) / chosen
    tokens = tl.maximum(tokens, 1.0)
    full = tl.log(tl.maximum(experts, 2).to(tl.float32))
    full = tl.where(experts > 1, full, 1.0)
    spread = -tl.sum(tl.where(load > 0, load * tl.log(tl.where(load > 0, load, 1.0)), 0.0), 0)
    tl.store(balance, balance_scale * experts * tl.sum(load * share, 0))
    tl.store(z, z_scale * squared)
    tl.store(statistics, entropy / tokens / full)
    tl.store(statistics + 1, spread / full)
    tl.store(statistics + 2, tl.max(load, 0))
    tl.store(statistics + 3, chosen / tokens)
    tl.store(statistics + 4, 0.0)
    tl.store(statistics + 5 + column, load, mask=column < experts)
    before = until - number
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        there = block < blocks
        place = block[:, None] * WIDE + column[None, :]
        own = tl.load(counts + place, mask=there[:, None], other=0)
        tl.store(counts + place, before[None, :] + tl.cumsum(own, 0) - own, mask=there[:, None])
        before += tl.sum(own, 0)


@triton.jit
def _place(
    expert, first, row, tokens, slots, experts, BLOCK: tl.constexpr, SLOTS: tl.constexpr, WIDE: tl.constexpr
):
    """Rows of an expert in the order of tokens and their slots."""
    block, column = tl.program_id(0), tl.arange(0, WIDE)
    index = tl.arange(0, BLOCK * SLOTS)
    token, slot = block * BLOCK + index // SLOTS, index % SLOTS
    there = (token < tokens) & (slot < slots)
    place = token.to(tl.int64) * slots + slot
    chosen = tl.load(expert + place, mask=there, other=-1).to(tl.int32)
    own = (chosen[:, None] == column[None, :]).to(tl.int32)
    begin = tl.load(first + block * WIDE + column)
    found = tl.sum(own * (begin[None, :] + tl.cumsum(own, 0) - 1), 1)
    tl.store(row + place, tl.where(chosen < 0, -1, found), mask=there)


@triton.jit
def _backward(
    logits, valid, statistics, to_balance, to_z, gradient, tokens, experts, balance_scale, z_scale,
    masked: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):
    token, column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDE)
    there = token < tokens
    inside = there[:, None] & (column < experts)[None, :]
    place = token.to(tl.int64)[:, None] * experts + column[None, :]
    _, partition, share = _softmax(logits + place, inside)
    load = tl.load(statistics + FIRST + column, mask=column < experts, other=0.0)
    upstream = tl.load(to_balance).to(tl.float32) * balance_scale * load
    centred = upstream[None, :] - tl.sum(share * upstream[None, :], 1)[:, None]
    found = share * (centred + (tl.load(to_z).to(tl.float32) * z_scale * partition)[:, None])
    if masked:
        loss_mask = tl.load(valid + token, mask=there, other=0) != 0
        found = tl.where(loss_mask[:, None], found, 0.0)
    tl.store(gradient + place, found.to(gradient.dtype.element_ty), mask=inside)
