"""What routers share: the best few of E destinations.

Letters: B batch rows, N tokens, E destinations, K slots.
"""

from __future__ import annotations

import torch
from torch import Tensor


def best(logits: Tensor, slots: int, used: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The ``slots`` destinations of highest logit with weights, each (B, N, K); unused slots are −1 and 0.

    Weights are softmax probabilities relative to the best K, and to the best two where K is 1: a single choice then
    weighs σ(l₁ − l₂) and not the constant 1, so that its router has a gradient. ``used`` (B, N) int is how many slots
    a token fills; all by default.
    """
    value, expert = logits.topk(min(max(slots, 2), logits.shape[-1]), dim=-1)
    weight = value.softmax(dim=-1)
    if slots < weight.shape[-1]:
        weight, expert = weight[..., :slots], expert[..., :slots]
    if used is None:
        return expert, weight
    unused = torch.arange(slots, device=logits.device) >= used[..., None]
    return expert.masked_fill(unused, -1), weight.masked_fill(unused, 0.0)

