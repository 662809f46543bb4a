"""A residual short convolution, the plainest mixer of neighbouring tokens (Canon layers, Allen-Zhu 2025)."""

from __future__ import annotations

from torch import Tensor, nn

from muse_baseline.options import ConvolutionOptions
from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.context import Context
from muse_core.model.convolution import PlainConvolution
from muse_core.model.precision import lowered


class Convolution(nn.Module):
    """update_t = Σ_{lag < S} tap_lag ⊙ x_{t−lag}. State: ``inputs`` (B, S − 1, D), the last ones."""

    def __init__(self, options: ConvolutionOptions, context: Context):
        super().__init__()
        self.mix = PlainConvolution(context.width, options.span, context.generator, context.kernels.bind, "small")

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        update, kept = self.mix(lowered(x), None if state is None else state["inputs"], tokens)
        return LayerOutput(update, {"inputs": kept})
