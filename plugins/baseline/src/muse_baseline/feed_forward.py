"""Feed-forward layers: SwiGLU (Shazeer 2020), GELU, squared ReLU (So et al. 2021); with a short convolution before them
as in Canon layers (Allen-Zhu 2025)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from muse_baseline.options import FeedForwardOptions
from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.context import Context
from muse_core.model.convolution import PlainConvolution
from muse_core.model.precision import lowered


class FeedForward(nn.Module):
    """update = W₂ act(W₁ x), with act(W₁ x) ⊙ W₃ x for swiglu. Each token by itself; the state is empty.

    With a convolution x_t is Σ_{lag < S} tap_lag ⊙ x_{t−lag} of the same document, and the state ``inputs``
    (B, S − 1, D), the last ones.
    """

    def __init__(self, options: FeedForwardOptions, context: Context):
        super().__init__()
        self.activation = options.activation
        hidden = max(8, 8 * round(options.multiple * context.width / 8))
        self.input = nn.Linear(context.width, hidden * (2 if options.activation == "swiglu" else 1), bias=False)
        self.output = nn.Linear(hidden, context.width, bias=False)
        nn.init.normal_(self.input.weight, std=context.width**-0.5)
        nn.init.normal_(self.output.weight, std=(2 * context.depth * hidden) ** -0.5)
        self.convolution = None
        if options.convolution:
            self.convolution = PlainConvolution(
                context.width, options.convolution, context.generator, context.kernels.bind, "identity"
            )

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        kept = {}
        if self.convolution is not None:
            x, kept["inputs"] = self.convolution(lowered(x), None if state is None else state["inputs"], tokens)
        hidden = self.input(x)
        if self.activation == "swiglu":
            hidden, gate = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * hidden
        elif self.activation == "gelu":
            hidden = F.gelu(hidden)
        else:
            hidden = F.relu(hidden).square()
        return LayerOutput(self.output(hidden), kept)
