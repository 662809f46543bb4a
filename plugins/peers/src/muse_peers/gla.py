"""Gated linear attention: writes without removal, and a decay for every channel of the keys.

Shapes: B batch, N tokens, D width, H heads, K key width, M value width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.context import Context
from muse_core.model.precision import lowered
from muse_core.model.projections import joined, projection
from muse_peers.initial import LowRank
from muse_peers.kernels import channel_decay_kernel
from muse_peers.options import GlaOptions
from muse_peers.recurrence import Writing

NORMALIZER = 16.0
"""What the logarithm of a forget gate is divided by."""


class Dynamics(nn.Module):
    """g = log σ(f(x) + c) / 16 per channel, f of low rank, in fp32 at least."""

    def __init__(self, width: int, heads: int, key_width: int, rank: int, generator: torch.Generator):
        super().__init__()
        self.heads = heads
        self.decay = LowRank(width, rank, heads * key_width, generator, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) → g ≤ 0 (B, N, H, K)."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            return F.logsigmoid(self.decay(x)).unflatten(-1, (self.heads, -1)) / NORMALIZER


class Gla(nn.Module):
    """update_t = P (norm(W_tᵀ q_t / √K) ⊙ SiLU(G x_t)), W_t = diag(e^{g}) W_{t−1} + k vᵀ.

    State: ``weights`` (B, H, K, M). Source: Yang and others, arXiv:2312.06635.
    """

    def __init__(self, options: GlaOptions, context: Context):
        super().__init__()
        width, generator = context.width, context.generator
        self.heads = options.heads
        self.key_width, self.value_width = options.key_width(width), options.value_width(width)
        keys, values = self.heads * self.key_width, self.heads * self.value_width
        scores = context.kernels.bind("decayed_scores", sizes={"key": self.key_width}, needs=("gradient", "resets"))
        self.recurrence = channel_decay_kernel("gla", options.kernel, scores)
        self.query = projection(width, keys, generator)
        self.key = projection(width, keys, generator)
        self.value = projection(width, values, generator)
        self.gate = projection(width, values, generator)
        self.dynamics = Dynamics(width, self.heads, self.key_width, options.rank, generator)
        self.norm = nn.RMSNorm(self.value_width, eps=1e-5)
        self.gated_norm = context.kernels.bind("gated_norm", sizes={"features": self.value_width})
        # As many updates as there are blocks add up in the stream.
        self.output = projection(values, width, generator, gain=(2 * context.depth) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        low = lowered(x)
        keys, values = self.heads * self.key_width, self.heads * self.value_width
        projected = joined(low, (self.query, self.key, self.value, self.gate))
        projected = projected.split((keys, keys, values, values), dim=-1)
        query, key, value, gate = (part.unflatten(-1, (self.heads, -1)) for part in projected)
        writing = Writing(key, value, self.dynamics(x))
        before = None if state is None else state["weights"]
        read, after = self.recurrence(query * self.key_width**-0.5, writing, before, tokens.starts(), tokens.valid)
        read = self.gated_norm(read, self.norm.weight, gate, epsilon=self.norm.eps)
        return LayerOutput(self.output(read.flatten(2).to(low.dtype)), {"weights": after})
