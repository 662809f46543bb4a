"""A filter of fast weights.

Letters: B batch rows, H heads, K × M weights of a head.
"""

from __future__ import annotations

import torch
from muse_core.contracts import Period, State
from muse_core.model.context import Context
from torch import Tensor, nn

from new_plugin.options import NewPluginOptions


class NewPlugin(nn.Module):
    """after · min(1, factor · usual / size), where size is a head's root mean square and usual its moving average over
    the periods of the document. The scale has no gradient. State: ``usual`` (B, H). Measure: ``share_scaled``."""

    def __init__(self, options: NewPluginOptions, context: Context):
        super().__init__()
        self.factor, self.memory = options.factor, options.memory

    def forward(
        self, before: Tensor, after: Tensor, period: Period, state: State
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """``before`` and ``after`` (B, H, K, M), ``state`` None at the start → weights, state, metrics."""
        size = after.detach().square().mean((-1, -2)).sqrt()
        usual = size
        if state is not None:
            average = self.memory * state["usual"] + (1 - self.memory) * size
            usual = torch.where(period.reset[:, None], size, average)
        scale = (self.factor * usual / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(1.0)
        # Weights of zero have size zero, and nothing to scale.
        scale = torch.where(size > 0, scale, 1.0)
        return after * scale[..., None, None], {"usual": usual}, {"share_scaled": (scale < 1).to(size.dtype).mean()}
