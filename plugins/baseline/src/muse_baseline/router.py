"""The usual learned router (Shazeer et al. 2017).

Letters: B batch rows, N tokens, D width, E experts, K chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_baseline.options import MlpRouterOptions
from muse_core.contracts import Routing, Tokens
from muse_core.model.context import Context
from muse_core.model.routing import best


class MlpRouter(nn.Module):
    """The K experts of highest logit, logits = W₂ gelu(W₁ x), or W x without hidden units. Each token by itself."""

    fills_slots = True

    def __init__(self, options: MlpRouterOptions, context: Context):
        super().__init__()
        assert context.experts is not None
        problem = options.refuse(context.experts)
        if problem:
            raise ValueError(problem)
        self.chosen = options.top_k
        self.expected_slots = float(options.top_k)
        width = context.width
        self.hidden = None
        if options.hidden:
            self.hidden = nn.Linear(width, options.hidden, bias=False)
            nn.init.normal_(self.hidden.weight, std=width**-0.5)
            width = options.hidden
        self.score = nn.Linear(width, context.experts, bias=False)
        nn.init.normal_(self.score.weight, std=width**-0.5)

    def forward(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> Routing:
        """x (B, N, D). Logits are computed in fp32 at least, since rounding would change choices."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.hidden is not None:
                x = F.gelu(self.hidden(x))
            logits = self.score(x)
        expert, weight = best(logits, self.chosen)
        return Routing(expert, weight, logits)
