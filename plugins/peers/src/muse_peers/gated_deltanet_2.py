"""Gated DeltaNet-2: Kimi Delta Attention with a gate for what is taken out of each channel of the keys and another for
what is put into each channel of the values.

Shapes: B batch, N tokens, D width, H heads, K key width, M value width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.model.context import Context
from muse_core.model.projections import joined, projection
from muse_peers.initial import LowRank, log_amplitude, step_bias
from muse_peers.kda import ChannelDelta, channel_log_decay
from muse_peers.options import GatedDeltaNet2Options
from muse_peers.recurrence import Writing

GATE_GAIN = 2**-2.5
"""Of the gates' first projections, which the authors start near 1/2."""


class Decay(nn.Module):
    """g = −A softplus(f(x) + b) per channel, f of low rank; in fp32 at least."""

    def __init__(self, width: int, heads: int, key_width: int, rank: int, generator: torch.Generator):
        super().__init__()
        self.map = LowRank(width, rank, heads * key_width, generator)
        self.log_amplitude = log_amplitude(heads, generator, 1.0)
        self.bias = step_bias(heads * key_width, generator)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) → g ≤ 0 (B, N, H, K)."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            return channel_log_decay(self.map(x), self.bias, self.log_amplitude)


class GatedDeltaNet2(ChannelDelta):
    """W_t = (I − k (b ⊙ k)ᵀ) diag(e^{g}) W_{t−1} + k (w ⊙ v)ᵀ, with SiLU before the output.

    b = σ(E x) in every channel of the keys, or 2σ, and w = σ(S x) in every channel of the values. With b = w = β it is
    KDA's W. Source: Hatamizadeh, Choi and Kautz, arXiv:2605.22791.
    """

    def build_writing(self, options: GatedDeltaNet2Options, context: Context) -> None:
        width, generator = context.width, context.generator
        self.decay = Decay(width, self.heads, self.key_width, self.value_width, generator)
        self.erase = projection(width, self.heads * self.key_width, generator, gain=GATE_GAIN)
        self.write = projection(width, self.heads * self.value_width, generator, gain=GATE_GAIN)

    def writing(self, x: Tensor, low: Tensor, key: Tensor, value: Tensor, signals: dict[str, Tensor]) -> Writing:
        gates = joined(low, (self.erase, self.write)).sigmoid()
        erase, write = gates.split((self.heads * self.key_width, self.heads * self.value_width), -1)
        erase, write = (self.most * erase).unflatten(-1, (self.heads, -1)), write.unflatten(-1, (self.heads, -1))
        log_decay = self.decay(x)
        return Writing(key, write * value, log_decay, -erase * key * log_decay.exp(), key)

    def opened(self, gate: Tensor) -> Tensor:
        return F.silu(gate)
