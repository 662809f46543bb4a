"""A bounded potential.

Letters: B batch rows, N tokens, D width, H heads of the resolvent.
"""

from __future__ import annotations

import math

import torch
from muse_core.contracts import Tokens
from muse_core.model.context import Context
from torch import Tensor, nn
from torch.nn import functional as F

from new_plugin.options import NewPluginOptions


class NewPlugin(nn.Module):
    """V = bound · tanh(W x / bound) and Γ = softplus(U x + c) ≥ 0 of the token alone. The terms that a recipe lists are
    summed by the layer that asks for them."""

    def __init__(self, options: NewPluginOptions, context: Context):
        super().__init__()
        assert context.heads is not None
        self.bound = options.bound
        self.energy = nn.Linear(context.width, context.heads, bias=False)
        self.decay = nn.Linear(context.width, context.heads)
        nn.init.normal_(self.energy.weight, std=context.width**-0.5, generator=context.generator)
        nn.init.normal_(self.decay.weight, std=0.1 * context.width**-0.5, generator=context.generator)
        nn.init.constant_(self.decay.bias, math.log(math.expm1(options.initial_decay)))

    def forward(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
        """x (B, N, D) → V and Γ, each (B, N, H), at least fp32."""
        energy, decay = self.energy(x), self.decay(x)
        precise = torch.promote_types(energy.dtype, torch.float32)
        return self.bound * torch.tanh(energy.to(precise) / self.bound), F.softplus(decay.to(precise))
