"""Feed-forward layers: SwiGLU (Shazeer 2020), GELU, squared ReLU (So et al. 2021)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from muse_baseline.options import FeedForwardOptions
from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.context import Context


class FeedForward(nn.Module):
    """update = W₂ act(W₁ x), with act(W₁ x) ⊙ W₃ x for swiglu. Each token by itself; the state is empty."""

    def __init__(self, options: FeedForwardOptions, context: Context):
        super().__init__()
        self.activation = options.activation
        hidden = max(8, 8 * round(options.multiple * context.width / 8))
        self.input = nn.Linear(context.width, hidden * (2 if options.activation == "swiglu" else 1), bias=False)
        self.output = nn.Linear(hidden, context.width, bias=False)
        nn.init.normal_(self.input.weight, std=context.width**-0.5)
        nn.init.normal_(self.output.weight, std=(2 * context.depth * hidden) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        hidden = self.input(x)
        if self.activation == "swiglu":
            hidden, gate = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * hidden
        elif self.activation == "gelu":
            hidden = F.gelu(hidden)
        else:
            hidden = F.relu(hidden).square()
        return LayerOutput(self.output(hidden), {})
