"""The causal resolvent of rows of which each process holds a part of the tokens.

What the chunks of a row do is gathered from all processes, and the carries run over all chunks: no process computes
more of its own part than it does of a whole row. Backward, the adjoint's chunks alike.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...arguments import check_resolvent
from .column_apply_launches import run_columns, run_columns_back
from .green_launches import left_green_backward, left_green_forward, linear_carries, moebius_carries
from .rows import Rows, check_served, rows_of, values_of
from .tiles import ColumnTile, Tile, column_tile, left_backward_tile, left_tile

Collect = Callable[[Tensor], Tensor]
"""The values of all processes, (C, ...), in the order of the tokens; of a contiguous tensor of floats."""


class Part:
    """The chunks of part `rank` among those of all processes, of which each has as many."""

    def __init__(self, collect: Collect, rank: int):
        self.collect, self.rank = collect, rank
        self.before = self.last = torch.empty(0)
        """What the last forward carries began with here, and ended with behind the last token of all."""

    def moebius(self, summary: Tensor, initial: Tensor) -> Tensor:
        """As `moebius_carries`, of the own chunks; `initial` is theta before the first token of all."""
        (joined,) = self._joined(summary)
        nothing = _ones_at(summary, 8, 0, 6)
        return self._kept(moebius_carries(_and_last(joined, nothing), initial), summary.shape[1])

    def linear(self, factor: Tensor, term: Tensor, initial: Tensor, reverse: bool) -> Tensor:
        """As `linear_carries`, of the own chunks."""
        chunks = factor.shape[1]
        factor, term = self._joined(factor, term)
        if reverse:
            return self._own(linear_carries(factor, term, initial, reverse=True), chunks)
        nothing = _ones_at(factor, 2, 0)
        factor, term = _and_last(factor, nothing), _and_last(term, torch.zeros_like(nothing))
        return self._kept(linear_carries(factor, term, initial, reverse=False), chunks)

    def _joined(self, *parts: Tensor) -> list[Tensor]:
        """(R, C, ...) of every process -> the chunks of all, of every part; they are gathered at once."""
        flat = [part.flatten(2) for part in parts]
        widths = [part.shape[2] for part in flat]
        told = self.collect(torch.cat(flat, dim=-1)).transpose(0, 1).flatten(1, 2)
        return [one.unflatten(-1, part.shape[2:]) for one, part in zip(told.split(widths, dim=-1), parts, strict=True)]

    def _own(self, starts: Tensor, chunks: int) -> Tensor:
        return starts[:, self.rank * chunks : (self.rank + 1) * chunks].contiguous()

    def _kept(self, starts: Tensor, chunks: int) -> Tensor:
        own = self._own(starts, chunks)
        self.before, self.last = own[:, 0].clone(), starts[:, -1].clone()
        return own


def _and_last(x: Tensor, last: Tensor) -> Tensor:
    """(R, C, ..., n) and a further chunk that is `last` (n,)."""
    return torch.cat((x, last.expand(len(x), 1, *x.shape[2:])), dim=1)


def _ones_at(like: Tensor, size: int, *places: int) -> Tensor:
    """Zeros but for ones at these places, made on the device: a copy from the host would wait for it."""
    found = like.new_zeros(size)
    for place in places:
        found[place : place + 1].fill_(1)
    return found


class Sizes(NamedTuple):
    """Chunks of theta, of its adjoint and of the values."""

    theta: Tile
    back: Tile
    columns: ColumnTile


def sizes_of(rows: int, sites: int, width: int) -> Sizes | None:
    """None where no tile's chunks make up the part: what a chunk does is known of whole ones alone."""
    tiles = []
    for tile in (left_tile(sites), left_backward_tile(sites)):
        while sites % tile.sites and tile.lanes > 32:
            tile = tile._replace(lanes=tile.lanes // 2, warps=max(1, tile.warps // 2))
        if sites % tile.sites:
            return None
        tiles.append(tile)
    return Sizes(*tiles, column_tile(rows, sites, width))


def apply_to_part(
    collect: Collect, rank: int, diagonal, lower, upper, energy, values, *, initial=None, sizes: Sizes | None = None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """`muse_kernels.causal_resolvent_apply` of the tokens of process `rank`, or None for a number of tokens of which it
    is not made.

    `initial` belongs to the first token of all and the final state, through which no gradient goes, to the last; both
    are the same in all processes.
    """
    problem = check_resolvent(
        "causal_resolvent_apply", diagonal, lower, upper, energy, values=values, initial=initial, keeps_half=True
    )
    check_served(problem)
    rows, (x, carried) = rows_of(problem), values_of(problem)
    sizes = sizes or sizes_of(len(carried), problem.sites, carried.shape[-1])
    if sizes is None:
        return None
    y, theta, last_y, last_theta = _Apply.apply(collect, rank, sizes, *rows, x, carried)
    lead, width = problem.lead, carried.shape[-1]
    final = last_theta.reshape(lead), last_y.reshape(*lead, width)
    return (y.reshape(*problem.shape, width), theta.reshape(problem.shape)), final


class _Apply(torch.autograd.Function):
    """y (B, H, N, M), theta (R, N), and behind the last token of all y (R, M) and theta (R,)."""

    @staticmethod
    def forward(ctx, collect, rank, sizes, diagonal, lower, upper, energy, theta, values, carried):
        rows, part = Rows(diagonal, lower, upper, energy, theta), Part(collect, rank)
        result = left_green_forward(rows, sizes.theta, False, part.moebius)[0]
        theta, last_theta = part.before, part.last
        y = run_columns(values, lower, result, carried, sizes.columns, part.linear)
        ctx.save_for_backward(y, result, diagonal, lower, upper, energy, theta, part.before)
        ctx.part, ctx.sizes, ctx.dtype = part, sizes, values.dtype
        ctx.mark_non_differentiable(part.last, last_theta)
        return y, result, part.last, last_theta

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_y, gradient_theta, *_):
        y, result, *operands, carried = ctx.saved_tensors
        rows, carries = Rows(*operands), ctx.part.linear
        hopping = ctx.needs_input_grad[4] or ctx.needs_input_grad[5]
        dx, applied, before, first_y = run_columns_back(
            gradient_y, y, rows.lower, result, carried, ctx.dtype, ctx.sizes.columns, carries
        )
        if hopping and rows.lower.ndim == 1:
            before = (result * before).sum(1)
        da, dl, du, dz, first_theta = left_green_backward(
            rows, result, gradient_theta, applied, before if hopping else None, hopping, ctx.sizes.back, False, carries
        )
        if ctx.part.rank:  # what came before the first token of all reaches the others through the first process
            first_y, first_theta = torch.zeros_like(first_y), torch.zeros_like(first_theta)
        return None, None, None, da, dl if hopping else None, du if hopping else None, dz, first_theta, dx, first_y
