"""Gated DeltaNet on MUSE's own kernels.

Shapes: B batch, N tokens, D width, H heads, K key width, M value width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.fast_weights import Writes, by_period
from muse_core.model.context import Context
from muse_core.model.convolution import CausalConvolution
from muse_core.model.precision import lowered
from muse_core.model.projections import joined, projection, widened
from muse_peers.initial import log_amplitude, step_bias
from muse_peers.options import GatedDeltaNetOptions

EPSILON = 1e-5
"""Of fla's norm, which reads with queries of length K^{−1/2}; ours have length 1."""


class Dynamics(nn.Module):
    """g = −A softplus(a·x + b) and β = σ(u·x), or 2σ(u·x), per head, in fp32 at least."""

    def __init__(self, width: int, heads: int, most: float, generator: torch.Generator):
        super().__init__()
        self.most = most
        self.decay = projection(width, heads, generator, gain=3**-0.5)
        self.rate = projection(width, heads, generator, gain=3**-0.5)
        self.log_amplitude = log_amplitude(heads, generator)
        self.bias = step_bias(heads, generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, N, D), as matrix products take it → g ≤ 0 and β, each (B, N, H)."""
        with torch.autocast(x.device.type, enabled=False):
            forgetting, writing = widened(x, (self.decay, self.rate)).chunk(2, dim=-1)
            # −softplus(z); torch 2.13 miscompiles the backward pass of softplus for the strides of a kernel's gradient.
            decay = self.log_amplitude.exp() * F.logsigmoid(-(forgetting + self.bias))
            return decay, self.most * torch.sigmoid(writing)


class GatedDeltaNet(nn.Module):
    """update_t = P (norm(W_tᵀ q_t) ⊙ SiLU(G x_t)), W_t = e^{g} (I − β k kᵀ) W_{t−1} + β k vᵀ.

    Queries and keys have length 1 after the convolution and SiLU. State: ``memory`` with ``weights`` (B, H, K, M), and
    ``convolution`` (B, span − 1, H (2K + M)), its last inputs. Source: Yang, Kautz, Hatamizadeh, arXiv:2412.06464.
    """

    def __init__(self, options: GatedDeltaNetOptions, context: Context):
        super().__init__()
        width, generator = context.width, context.generator
        self.heads = options.heads
        self.key_width, self.value_width = options.key_width(width), options.value_width(width)
        sizes = {"key": self.key_width, "value": self.value_width}
        self.kernel = context.kernels.bind("fast_weights", sizes=sizes, needs=("gradient", "resets"))
        self.query = projection(width, self.heads * self.key_width, generator)
        self.key = projection(width, self.heads * self.key_width, generator)
        self.value = projection(width, self.heads * self.value_width, generator)
        short = context.kernels.bind(
            "short_convolution",
            sizes={"key": self.key_width, "span": options.convolution},
            needs=("gradient", "resets"),
        )
        channels = self.heads * (2 * self.key_width + self.value_width)
        self.convolution = CausalConvolution(channels, options.convolution, generator, short, "uniform")
        self.dynamics = Dynamics(width, self.heads, 2.0 if options.negative_eigenvalues else 1.0, generator)
        self.norm = nn.RMSNorm(self.value_width, eps=EPSILON * self.key_width)
        self.gated_norm = context.kernels.bind("gated_norm", sizes={"features": self.value_width})
        self.gate = projection(width, self.heads * self.value_width, generator) if options.gate else None
        # As many updates as there are blocks add up in the stream.
        self.output = projection(self.heads * self.value_width, width, generator, gain=(2 * context.depth) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        state = {} if state is None else state
        low = lowered(x)
        projected = joined(low, (self.query, self.key, self.value))
        (query, key, value), convolved = self.convolution(
            projected, self.heads, self.key_width, state.get("convolution"), tokens
        )
        reading = by_period(
            self.kernel,
            [],
            Writes(query, key, value, *self.dynamics(low)),
            state.get("memory"),
            tokens,
            rule="delta",
            period=1,
        )
        gate = None if self.gate is None else self.gate(low).view(reading.output.shape)
        read = self.gated_norm(reading.output, self.norm.weight, gate, epsilon=self.norm.eps)
        update = self.output(read.flatten(2).to(projected.dtype))
        return LayerOutput(update, {"memory": reading.state, "convolution": convolved})
