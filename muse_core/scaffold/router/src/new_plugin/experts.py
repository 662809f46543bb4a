"""A layer of experts, so that the router can be trained: any other layer with experts may ask the router too.

Letters: B batch rows, N tokens, D width, E experts, F hidden units.
"""

from __future__ import annotations

import torch
from muse_core.contracts import State, LayerOutput, Tokens
from muse_core.model.context import Context
from torch import Tensor, nn
from torch.nn import functional as F

from new_plugin.options import NewPluginExpertsOptions
from new_plugin.router import per_expert


class NewPluginExperts(nn.Module):
    """update = Σ_e weight_e W_e gelu(V_e x) over the chosen experts. Every expert is computed for every token, which is
    simple and has shapes that do not depend on the data; it saves nothing."""

    def __init__(self, options: NewPluginExpertsOptions, context: Context):
        super().__init__()
        count, hidden, width = options.experts, options.hidden, context.width
        self.router = context.build(options.router, name=f"{context.name}.router", experts=count)
        self.input = nn.Parameter(torch.randn(count, width, hidden, generator=context.generator) * width**-0.5)
        output = torch.randn(count, hidden, width, generator=context.generator)
        self.output = nn.Parameter(output * (2 * context.depth * hidden) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised. Each token by itself; the state is empty."""
        routing = self.router(x, signals, tokens)
        weight = per_expert(routing.weight, routing.expert, len(self.input)).to(x.dtype)
        hidden = F.gelu(torch.einsum("bnd,edf->bnef", x, self.input.to(x.dtype)))
        update = torch.einsum("bnef,efd->bnd", hidden * weight[..., None], self.output.to(x.dtype))
        metrics = {f"router/{name}": value for name, value in routing.metrics.items()}
        return LayerOutput(update, {}, {}, routing.losses, metrics)
