"""Fast weights over rows of which each process holds a part of the tokens.

A part is cut into pieces as a whole row is, and what all its pieces do to the state is gathered from all processes:
S -> A S + B, and backward dS -> A^T dS + D. No process scans its tokens more often than it does those of a whole row.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...arguments import Call, check_fast_weights
from ..memory import unit_last_stride
from . import launch
from . import pieces as in_pieces
from .operator import _prepared, _problem

Collect = Callable[[Tensor], Tensor]
"""The values of all processes, (C, ...), in the order of the tokens; of a contiguous tensor of floats."""


def fast_weights_of_part(
    collect: Collect, rank: int, query, key, value, log_decay, rate, *, rule="hebbian", initial=None, resets=None,
    read="after", chunk=64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`muse_kernels.fast_weights` of the tokens of process `rank`.

    `initial` belongs to the first token of all and the final weights, through which no gradient goes, to the last; both
    are the same in all processes.
    """
    call = Call(query, key, value, log_decay, rate, rule, initial, resets, read, chunk)
    layout = check_fast_weights(call)
    operands, pieces = _prepared(call, layout)
    output, final = _FastWeights.apply(collect, rank, pieces, *operands)
    return output[..., : layout.value_width], final[..., : layout.key_width, : layout.value_width]


class Carried:
    """`pieces.carry` over the pieces of all processes."""

    def __init__(self, collect: Collect, rank: int):
        self.collect, self.rank = collect, rank

    def __call__(
        self, factors: Tensor, terms: Tensor, state: Tensor, pieces: int, *, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        """The state before each own piece (with `reverse`: after it), and behind the last of all, (B, H, K, M)."""
        width, key_width = state.shape[-1], state.shape[-2]
        # From zero, and in K columns more from the unit matrix: what the own pieces add and by what they multiply.
        unit = torch.eye(key_width, dtype=state.dtype, device=state.device).expand(*state.shape[:-1], key_width)
        both = torch.cat((terms, terms.new_zeros(*terms.shape[:-1], key_width)), dim=-1)
        first = torch.cat((torch.zeros_like(state), unit), dim=-1)
        before, after = in_pieces.carry(factors, both, first, pieces, reverse=reverse)
        told = self.collect(after)
        own = torch.zeros_like(state)
        for number in reversed(range(len(told))) if reverse else range(len(told)):
            if number == self.rank:
                own = state
            state = told[number, ..., :width] + told[number, ..., width:] @ state
        before = before.unflatten(0, (len(state), pieces))
        starts = before[..., :width] + before[..., width:] @ own[:, None]
        return starts.flatten(0, 1), state


class _FastWeights(torch.autograd.Function):
    """Output (B, N, H, M) and the weights (B, H, K, M) behind the last token of all."""

    @staticmethod
    def forward(ctx, collect, rank, pieces, *operands):
        carried = Carried(collect, rank)
        with torch.autocast(operands[0].device.type, enabled=False):
            output, final, residual, prepared, kept = in_pieces.forward(_problem(*operands), pieces, carried)
        ctx.save_for_backward(*operands[:7], residual, *prepared, *kept)
        ctx.carried, ctx.pieces, ctx.options = carried, pieces, operands[7:]
        ctx.mark_non_differentiable(final)
        return output, final

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, _):
        saved = ctx.saved_tensors
        problem = _problem(*saved[:7], *ctx.options)
        stored, prepared = saved[7] if problem.delta else problem.value, launch.Prepared(*saved[8:12])
        with torch.autocast(gradient.device.type, enabled=False):
            *leaves, first = in_pieces.backward(
                problem, stored, prepared, in_pieces.Pieces(*saved[12:]), unit_last_stride(gradient), None, ctx.pieces,
                ctx.carried,
            )
        # Weights before the first token of all reach the others through the first process.
        own = first if ctx.carried.rank == 0 else torch.zeros_like(first)
        initial = None if problem.initial is None else own
        return None, None, None, *leaves, initial, *(None,) * 5
