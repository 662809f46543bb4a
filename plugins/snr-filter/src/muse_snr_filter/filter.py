"""The snr filter.

Shapes: B batch, H heads, K key width, M value width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muse_core.contracts import Period, State
from muse_snr_filter.options import SnrOptions


class Snr(nn.Module):
    """Fades entries of W below ``threshold`` · σ and boosts the net writes of those above.

    σ² (B, H) is the variance that noise writes alone would leave per entry: ``write_scale`` of every period since the
    document began, each decayed by the periods after it. That is the filter's state, ``noise``. An entry below becomes
    e^{(gamma_boost − 1) Σg} · after. An entry above becomes after + (rate_boost − 1)(after − e^{Σg} · before), kept
    within the largest magnitude of its head, so that no filtered entry exceeds what the head held before. Only σ and
    the choice of entries are without gradient.

    Metrics: ``share_filtered`` (entries below) and ``signal_to_noise`` (root mean square of the entries over σ, 1 for
    noise).
    Source: mathematics §3 "Memory filters".
    """

    def __init__(self, options: SnrOptions, context: Any):
        super().__init__()
        self.options = options

    def forward(
        self, before: Tensor, after: Tensor, period: Period, state: State
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """``before`` and ``after`` (B, H, K, M) → filtered weights, {"noise": σ² (B, H)} and metrics."""
        noise = period.write_scale.detach()
        if state is not None:
            carried = state["noise"].masked_fill(period.reset[:, None], 0.0)
            noise = noise + (2 * period.log_decay.detach()).exp() * carried
        magnitude = after.abs()
        below = magnitude.detach() < self.options.threshold * noise.sqrt()[..., None, None]

        log_decay = period.log_decay[..., None, None]
        faded = ((self.options.gamma_boost - 1) * log_decay).exp() * after
        boosted = after + (self.options.rate_boost - 1) * (after - log_decay.exp() * before)
        largest = magnitude.amax((-1, -2), keepdim=True)
        # One operation: backward it is half as many as those of minimum and maximum.
        boosted = torch.clamp(boosted, -largest, largest)
        return torch.where(below, faded, boosted), {"noise": noise}, _measures(after, below, noise)


@torch.no_grad()
def _measures(after: Tensor, below: Tensor, noise: Tensor) -> dict[str, Tensor]:
    power = after.square().mean((-1, -2))
    return {
        "share_filtered": below.to(after.dtype).mean(),
        "signal_to_noise": (power / noise.clamp_min(torch.finfo(noise.dtype).tiny)).sqrt().mean(),
    }
