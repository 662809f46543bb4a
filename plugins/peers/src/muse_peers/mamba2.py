"""Mamba-2: a state space with one decay a head, as a linear memory whose keys and queries all heads share.

Shapes: B batch, N tokens, D width, H heads, S states (key width), P head width (value width).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.fast_weights import Writes, by_period
from muse_core.model.context import Context
from muse_core.model.convolution import PlainConvolution
from muse_core.model.precision import lowered
from muse_core.model.projections import projection, widened
from muse_peers.initial import log_amplitude, step_bias
from muse_peers.options import Mamba2Options


class Dynamics(nn.Module):
    """Δ = softplus(w·x + b) and g = −A Δ per head, in fp32 at least."""

    def __init__(self, width: int, heads: int, generator: torch.Generator):
        super().__init__()
        self.step = projection(width, heads, generator, gain=3**-0.5)
        self.log_amplitude = log_amplitude(heads, generator, 1.0)
        self.bias = step_bias(heads, generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, N, D), as matrix products take it → g ≤ 0 and Δ ≥ 0, each (B, N, H)."""
        with torch.autocast(x.device.type, enabled=False):
            # softplus; torch 2.13 miscompiles its backward pass for the strides of a kernel's gradient.
            step = -F.logsigmoid(-(widened(x, (self.step,)) + self.bias))
            return -self.log_amplitude.exp() * step, step


class Mamba2(nn.Module):
    """update_t = P norm((W_tᵀ c_t + d ⊙ x_t) ⊙ SiLU(z_t)), W_t = e^{−AΔ} W_{t−1} + Δ b x_tᵀ.

    x, b and c pass a short convolution with bias and SiLU; all heads share b and c. State: ``memory`` with ``weights``
    (B, H, S, P), and ``convolution`` (B, span − 1, H P + 2 S). Source: Dao and Gu, arXiv:2405.21060.
    """

    def __init__(self, options: Mamba2Options, context: Context):
        super().__init__()
        width, generator = context.width, context.generator
        self.states = options.states
        self.inner = options.inner(width)
        self.heads = options.heads(width)
        self.kernel = context.kernels.bind(
            "fast_weights",
            sizes={"key": self.states, "value": options.head_width(width)},
            needs=("gradient", "resets"),
        )
        self.input = projection(width, 2 * self.inner + 2 * self.states, generator)
        channels = self.inner + 2 * self.states
        self.convolution = PlainConvolution(
            channels, options.convolution, generator, context.kernels.bind, "uniform", bias=True
        )
        self.dynamics = Dynamics(width, self.heads, generator)
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(self.inner, eps=1e-5)
        # As many updates as there are blocks add up in the stream.
        self.output = projection(self.inner, width, generator, gain=(2 * context.depth) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        state = {} if state is None else state
        low = lowered(x)
        gate, mixed = self.input(low).split((self.inner, self.inner + 2 * self.states), dim=-1)
        mixed, convolved = self.convolution(mixed, state.get("convolution"), tokens)
        value, key, query = F.silu(mixed).split((self.inner, self.states, self.states), dim=-1)
        value = value.unflatten(-1, (self.heads, -1))
        key, query = (part[:, :, None].expand(-1, -1, self.heads, -1) for part in (key, query))
        reading = by_period(
            self.kernel,
            [],
            Writes(query, key, value, *self.dynamics(low)),
            state.get("memory"),
            tokens,
            rule="hebbian",
            period=1,
        )
        dtype = self.norm.weight.dtype
        read = reading.output.to(dtype) + self.skip[:, None] * value.to(dtype)
        read = self.norm(read.flatten(2) * F.silu(gate.to(dtype)))
        return LayerOutput(self.output(read.to(gate.dtype)), {"memory": reading.state, "convolution": convolved})
