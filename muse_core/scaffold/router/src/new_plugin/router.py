"""The router.

Letters: B batch rows, N tokens, D width, E experts, k chosen.
"""

from __future__ import annotations

import torch
from muse_core.contracts import Routing, Tokens
from muse_core.model.context import Context
from torch import Tensor, nn
from torch.nn import functional as F

from new_plugin.options import NewPluginOptions


class NewPlugin(nn.Module):
    """The k experts of highest score. Loss ``balance``: valid tokens × E Σ_e f_e P_e (Fedus et al. 2022), f the share
    of choices and P the mean score; 1 per token when all are equally busy. Measure: ``busiest_max``, the largest f."""

    def __init__(self, options: NewPluginOptions, context: Context):
        super().__init__()
        assert context.experts is not None
        if options.chosen > context.experts:
            raise ValueError(f"chosen = {options.chosen} exceeds the number of experts, {context.experts}")
        self.chosen, self.balance = options.chosen, options.balance
        self.score = nn.Linear(context.width, context.experts, bias=False)
        nn.init.normal_(self.score.weight, std=context.width**-0.5, generator=context.generator)

    def forward(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> Routing:
        """x (B, N, D). Scores are computed in fp32 at least, so that rounding changes no choice."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(torch.promote_types(x.dtype, torch.float32)), self.score.weight)
        score = logits.softmax(dim=-1)
        weight, expert = score.topk(self.chosen, dim=-1)
        valid = torch.ones_like(score[..., 0]) if tokens.valid is None else tokens.valid.to(score.dtype)
        count = valid.sum()
        share = per_expert(torch.ones_like(weight), expert, score.shape[-1]) / self.chosen
        busy = (share * valid[..., None]).sum((0, 1)) / count.clamp_min(1.0)
        mean = (score * valid[..., None]).sum((0, 1)) / count.clamp_min(1.0)
        loss = self.balance * count * len(mean) * (busy.detach() * mean).sum()
        return Routing(expert, weight, logits, {"balance": loss}, {"busiest_max": busy.detach().max()})


def per_expert(weight: Tensor, expert: Tensor, experts: int) -> Tensor:
    """Weights (B, N, k) of the chosen ``expert`` (B, N, k; −1 is none) as weights (B, N, E) of all."""
    own = expert[..., None] == torch.arange(experts, device=expert.device)
    return (weight[..., None] * own).sum(dim=-2)
