"""Positions as sines and cosines at the frequencies of zeta zeros."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.context import Context
from muse_zeta_init.options import ZetaPositionsOptions
from muse_zeta_init.zeros import random_zeros, zeta_zeros


class ZetaPositions(nn.Module):
    """update = amplitude ⊙ [sin(n ω_i) ‖ cos(n ω_i)] for n the position in the document, D/2 frequencies.

    Depends on positions alone; the state is empty. Source: mathematics §4.
    """

    def __init__(self, options: ZetaPositionsOptions, context: Context):
        super().__init__()
        if context.width < 2:
            raise ValueError("a sine and a cosine need a width of at least 2")
        self.register_buffer(
            "frequency", frequencies(options, context.width // 2, context.generator).to(torch.get_default_dtype())
        )
        self.amplitude = nn.Parameter(torch.full((2 * (context.width // 2),), options.scale))

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        angle = tokens.positions.to(self.frequency.dtype)[..., None] * self.frequency
        update = torch.cat((angle.sin(), angle.cos()), dim=-1) * self.amplitude
        return LayerOutput(nn.functional.pad(update, (0, x.shape[-1] - update.shape[-1])).to(x.dtype), {})


def frequencies(options: ZetaPositionsOptions, count: int, generator: torch.Generator) -> Tensor:
    """ω (count,) float64 in radians per token, descending from ``max_frequency``."""
    if options.frequencies == "geometric":
        lowest = math.log(2 * math.pi / options.longest)
        return torch.linspace(math.log(options.max_frequency), lowest, count, dtype=torch.float64).exp()
    zeros = zeta_zeros(count) if options.frequencies == "zeta" else random_zeros(count, generator)
    return options.max_frequency * zeros[0] / zeros
