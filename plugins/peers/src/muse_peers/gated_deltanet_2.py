"""Gated DeltaNet-2: Kimi Delta Attention with a gate for what is taken out of each channel of the keys and another for
what is put into each channel of the values.

Shapes: B batch, N tokens, D width, H heads, K key width, M value width.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.context import Context
from muse_core.model.convolution import CausalConvolution
from muse_core.model.precision import lowered
from muse_core.model.projections import joined, projection
from muse_peers.initial import LowRank, log_amplitude, step_bias
from muse_peers.kda import EPSILON, channel_log_decay
from muse_peers.options import GatedDeltaNet2Options
from muse_peers.recurrence import Writing, recurrence

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


class GatedDeltaNet2(nn.Module):
    """update_t = P (norm(W_tᵀ q_t) ⊙ SiLU(G x_t)), W_t = (I − k (b ⊙ k)ᵀ) diag(e^{g}) W_{t−1} + k (w ⊙ v)ᵀ.

    b = σ(E x) in every channel of the keys, or 2σ, and w = σ(S x) in every channel of the values. Queries and keys have
    length 1 after the convolution and SiLU; G has rank M and a bias. With b = w = β it is KDA's W. State: ``weights``
    (B, H, K, M), ``convolution`` (B, span − 1, H (2K + M)). Source: Hatamizadeh, Choi and Kautz, arXiv:2605.22791.
    """

    def __init__(self, options: GatedDeltaNet2Options, context: Context):
        super().__init__()
        width, generator = context.width, context.generator
        self.heads = options.heads
        self.key_width, self.value_width = options.key_width(width), options.value_width(width)
        keys, values = self.heads * self.key_width, self.heads * self.value_width
        self.query = projection(width, keys, generator)
        self.key = projection(width, keys, generator)
        self.value = projection(width, values, generator)
        short = context.kernels.bind(
            "short_convolution",
            sizes={"key": self.key_width, "span": options.convolution},
            needs=("gradient", "resets"),
        )
        scores = context.kernels.bind("decayed_scores", sizes={"key": self.key_width}, needs=("gradient", "resets"))
        self.recurrence = partial(recurrence, scores=scores)
        self.convolution = CausalConvolution(2 * keys + values, options.convolution, generator, short, "uniform")
        self.decay = Decay(width, self.heads, self.key_width, self.value_width, generator)
        self.most = 2.0 if options.negative_eigenvalues else 1.0
        self.erase = projection(width, keys, generator, gain=GATE_GAIN)
        self.write = projection(width, values, generator, gain=GATE_GAIN)
        self.norm = nn.RMSNorm(self.value_width, eps=EPSILON * self.key_width)
        self.gate = LowRank(width, self.value_width, values, generator, bias=True)
        # As many updates as there are blocks add up in the stream.
        self.output = projection(values, width, generator, gain=(2 * context.depth) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        state = {} if state is None else state
        low = lowered(x)
        projected = joined(low, (self.query, self.key, self.value))
        (query, key, value), convolved = self.convolution(
            projected, self.heads, self.key_width, state.get("convolution"), tokens
        )
        gates = joined(low, (self.erase, self.write)).sigmoid()
        erase, write = gates.split((self.heads * self.key_width, self.heads * self.value_width), -1)
        erase, write = (self.most * erase).unflatten(-1, (self.heads, -1)), write.unflatten(-1, (self.heads, -1))
        log_decay = self.decay(x)
        writing = Writing(key, write * value, log_decay, -erase * key * log_decay.exp(), key)
        read, weights = self.recurrence(query, writing, state.get("weights"), tokens.starts(), tokens.valid)
        dtype = self.norm.weight.dtype
        read = self.norm(read.to(dtype)) * F.silu(self.gate(low).to(dtype)).unflatten(-1, (self.heads, -1))
        update = self.output(read.flatten(2).to(projected.dtype))
        return LayerOutput(update, {"weights": weights, "convolution": convolved})
