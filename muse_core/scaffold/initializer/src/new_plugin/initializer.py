"""The initializer."""

from __future__ import annotations

from typing import Any

import torch
from muse_core.errors import RecipeError
from torch import Tensor, nn

from new_plugin.options import NewPluginOptions


class NewPlugin:
    """Values of N(0, gain² / fan-in) within ±cut standard deviations; fan-in is the product of the axes after the
    first."""

    def __init__(self, options: NewPluginOptions, context: Any):
        self.gain, self.cut = options.gain, options.cut

    def __call__(self, tensor: Tensor, *, role: str, generator: torch.Generator) -> Tensor:
        """A new tensor of the shape of ``tensor``, which is on the CPU in fp32. Draws from ``generator`` alone."""
        if tensor.ndim < 2:
            raise RecipeError(f"a {role} parameter of one axis has no fan-in - narrow the pattern 'match'")
        std = self.gain * tensor[0].numel() ** -0.5
        bound = self.cut * std
        return nn.init.trunc_normal_(torch.empty_like(tensor), 0.0, std, -bound, bound, generator=generator)
