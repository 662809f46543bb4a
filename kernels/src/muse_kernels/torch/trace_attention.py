"""Trace attention by plain torch operations.

Shapes: B batch, N tokens, S carried slots, H query heads, G key heads, R = H / G, K key width, M value width.
"""

import torch
from torch import Tensor

from ..trace_arguments import Problem, Traced, checked, sums_in_documents

ROWS = 256
"""Queries whose scores are formed at once."""
SMALLEST = 1e-300
"""Stands for zero in a quotient that is not used where it is zero."""


@checked
def trace_attention(problem: Problem) -> Traced:
    """By blocks of queries; arguments, results and errors as `muse_kernels.trace_attention`.

    Scores and softmax in float32, or float64; float16 and bfloat16 multiply the values in their own precision. Keeps
    the rows for the backward pass: O(N²), O(N window) with a window.
    """
    output, squares = rows(problem)
    scale, plain = scales(squares, problem.bound, problem.squares, problem.resets, problem.knee)
    return Traced((output * scale[..., None]).to(problem.query.dtype), scale, plain)


def rows(problem: Problem) -> tuple[Tensor, Tensor]:
    """Σ_j p_tj v_j (B, N, H, M) and ‖p_t‖² (B, N, H) of the causal softmax p, before scaling."""
    query, first, slots = problem.query, problem.first, problem.slots
    groups = problem.key.shape[2]
    query = query.unflatten(2, (groups, -1)).to(problem.state_dtype)
    key = problem.key.to(problem.state_dtype)
    slot = torch.arange(problem.key.shape[1], device=query.device)
    outputs, squares = [], []
    for start in range(0, query.shape[1], ROWS):
        own = query[:, start : start + ROWS]
        place = torch.arange(start, start + own.shape[1], device=query.device)[:, None] + slots
        last = slots + start + own.shape[1]
        begin = 0
        hidden = slot[:last] > place
        if first is not None:
            limit = first[:, start : start + own.shape[1], None]
            if problem.window is not None:
                begin = max(0, slots + start - problem.window + 1)
            hidden = hidden | (slot[:last] < limit)
        hidden = hidden.reshape(-1, 1, 1, own.shape[1], last)[..., begin:]
        scores = torch.einsum("bngrk,bsgk->bgrns", own, key[:, begin:last]) * problem.logit_scale
        row = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        value = problem.value[:, begin:last]
        outputs.append(torch.einsum("bgrns,bsgm->bngrm", row.to(value.dtype), value).flatten(2, 3))
        squares.append(row.square().sum(-1).flatten(1, 2).transpose(1, 2))
    return torch.cat(outputs, dim=1), torch.cat(squares, dim=1)


def scales(
    squares: Tensor, bound: Tensor, initial: Tensor | None, resets: Tensor | None, knee: float
) -> tuple[Tensor, Tensor]:
    """s_t and Q_t, (B, N, H) each, from ‖p_t‖² and the bound b_t; sums in float64.

    s_t² is the slope of the chord of g(·; b_t²) from Q_{t−1} to Q_t, written so that nothing cancels. Source:
    mathematics §6.
    """
    after, before = sums_in_documents(squares, initial, resets)
    limit = bound.double().square()
    lower, upper = before / limit, after / limit
    below, above = (knee - lower).clamp(min=0), (upper - knee).clamp(min=0)
    both = (1 - knee) ** 2 / ((lower.clamp(min=knee) + 1 - 2 * knee) * (above + 1 - knee))
    across = 1 - above.square() / ((above + 1 - knee) * (below + above).clamp(min=SMALLEST))
    scale = torch.where(lower >= knee, both, across).sqrt()
    return scale.to(bound.dtype), after.to(bound.dtype)
