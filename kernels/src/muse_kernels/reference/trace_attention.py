"""Trace attention in float64, one row at a time, as it is defined.

Shapes: B batch, N tokens, H query heads, G key heads, K key width, M value width.
"""

import torch
from torch import Tensor

from ..trace_arguments import Problem, Traced, checked


@checked
def trace_attention(problem: Problem) -> Traced:
    """Row by row; arguments, results and errors as `muse_kernels.trace_attention`.

    Computes in float64 whatever the inputs and casts the results back. Gradients are autograd's. Source:
    mathematics §6.
    """
    query, key, value, bound = (x.double() for x in (problem.query, problem.key, problem.value, problem.bound))
    batch, tokens, heads, _ = query.shape
    key, value = (x.repeat_interleave(heads // key.shape[2], dim=2) for x in (key, value))
    slot = torch.arange(key.shape[1], device=key.device)
    squares = bound.new_zeros(batch, heads) if problem.squares is None else problem.squares.double()

    outputs, scales, sums = [], [], []
    for t in range(tokens):
        seen = slot <= problem.slots + t
        if problem.first is not None:
            seen = seen & (slot >= problem.first[:, t, None])
        scores = problem.logit_scale * torch.einsum("bhk,bshk->bhs", query[:, t], key)
        row = scores.masked_fill(~seen.reshape(-1, 1, len(slot)), -torch.inf).softmax(-1)
        if problem.resets is not None:
            squares = squares.masked_fill(problem.resets[:, t, None], 0.0)
        own = row.square().sum(-1)
        used = [_allowed(x, bound[:, t].square(), problem.knee) for x in (squares, squares + own)]
        squares = squares + own
        scale = ((used[1] - used[0]) / own).sqrt()
        outputs.append(scale[..., None] * torch.einsum("bhs,bshm->bhm", row, value))
        scales.append(scale)
        sums.append(squares)
    output, scale, plain = (torch.stack(x, dim=1) for x in (outputs, scales, sums))
    return Traced(output.to(problem.query.dtype), scale.to(problem.state_dtype), plain.to(problem.state_dtype))


def _allowed(squares: Tensor, bound: Tensor, knee: float) -> Tensor:
    """g(Q; β) ≤ min(Q, β): Q up to knee β, from there on concave and smooth towards β."""
    share = squares / bound
    beyond = (share - knee).clamp(min=0)
    return bound * (share.clamp(max=knee) + (1 - knee) * beyond / (beyond + 1 - knee))
