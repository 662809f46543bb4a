"""The halting probability of adaptive computation time.

Letters: B batch rows, N tokens, D width, H heads of the resolvent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from muse_core.contracts import Routing, Tokens
from muse_core.model.context import Context
from muse_scattering_router.options import ActOptions


class Act(nn.Module):
    """h = σ(w·f + b), the weight of destination 1, the head, beside 1 − h for the next block; f is the token's stream,
    or cos πξ and sin πξ of every head. Source: Graves 2016; mathematics §5.
    """

    def __init__(self, options: ActOptions, context: Context):
        super().__init__()
        assert context.experts is not None
        problem = options.refuse(context.experts)
        if problem:
            raise ValueError(problem)
        self.by_phase = options.halting == "phase"
        features = 2 * context.signals["spectral_shift"][0] if self.by_phase else context.width
        # Vectors, which Muon and weight decay leave alone: a decayed bias would halt every second token.
        self.weight = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.tensor([math.log(options.initial / (1 - options.initial))]))

    def forward(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> Routing:
        """x (B, N, D); every token has both destinations."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            if self.by_phase:
                angle = math.pi * signals["spectral_shift"].to(dtype)
                features = torch.cat((angle.cos(), angle.sin()), dim=-1)
            else:
                # The stream grows with depth, and what it says does not.
                features = nn.functional.rms_norm(x.to(dtype), x.shape[-1:], eps=1e-6)
            logit = features @ self.weight.to(dtype) + self.bias
            halting = logit.sigmoid()
        expert = torch.arange(2, device=x.device).expand(*x.shape[:2], 2)
        weight = torch.stack((1 - halting, halting), dim=-1)
        logits = torch.stack((torch.zeros_like(logit), logit), dim=-1)
        return Routing(expert, weight, logits, {}, {"halting": _mean(halting.detach(), tokens)})


def _mean(x: Tensor, tokens: Tokens) -> Tensor:
    """Over valid tokens (B, N)."""
    if tokens.valid is None:
        return x.mean()
    return (x * tokens.valid).sum() / tokens.valid.sum().clamp(min=1)
