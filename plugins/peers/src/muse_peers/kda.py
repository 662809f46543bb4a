"""Kimi Delta Attention: the delta rule with a decay for every channel of the keys.

Shapes: B batch, N tokens, D width, H heads, K key width, M value width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.context import Context
from muse_core.model.convolution import CausalConvolution
from muse_core.model.precision import lowered
from muse_core.model.projections import joined, projection
from muse_core.model.signals import regrouped
from muse_peers.initial import LowRank, log_amplitude, step_bias
from muse_peers.kernels import Recurrence, channel_decay_kernel
from muse_peers.options import ChannelDeltaOptions, KdaOptions
from muse_peers.recurrence import Writing, recurrence

EPSILON = 1e-5
"""Of fla's norm, which reads with queries of length K^{−1/2}; ours have length 1."""


def channel_log_decay(raw: Tensor, bias: Tensor, log_amplitude: Tensor) -> Tensor:
    """g = −A softplus(raw + b) ≤ 0 (…, H, K) of raw (…, H K), b (H K) and log A (H,)."""
    return -log_amplitude.exp()[:, None] * F.softplus(raw + bias).unflatten(-1, (len(log_amplitude), -1))


class Dynamics(nn.Module):
    """g = −A softplus(f(x) + b) per channel, f of low rank, or of a signal, g = −Γ; β = σ(u·x) per head; in fp32 at
    least."""

    def __init__(
        self, width: int, heads: int, key_width: int, rank: int, most: float, own_decay: bool,
        generator: torch.Generator,
    ):  # fmt: skip
        super().__init__()
        self.heads, self.key_width, self.most = heads, key_width, most
        self.decay = LowRank(width, rank, heads * key_width, generator) if own_decay else None
        self.rate = projection(width, heads, generator, gain=3**-0.5)
        self.log_amplitude = self.bias = None
        if own_decay:
            self.log_amplitude = log_amplitude(heads, generator, 1.0)
            self.bias = step_bias(heads * key_width, generator)

    def forward(self, x: Tensor, decay: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, N, D); ``decay`` Γ ≥ 0 (B, N, heads of another layer), None for the channels' own → g ≤ 0 (B, N, H, K)
        and β (B, N, H)."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.decay is None:
                forgotten = -self.channels(decay).to(x.dtype).clamp_min(0.0)  # what grows would overflow
            else:
                forgotten = channel_log_decay(self.decay(x), self.bias, self.log_amplitude)
            return forgotten, self.most * torch.sigmoid(self.rate(x))

    def channels(self, decay: Tensor) -> Tensor:
        """Γ (…, heads of another layer) as (…, H, K). Raises ValueError where it cannot be divided evenly."""
        return regrouped(decay, self.heads * self.key_width, "decay", "channels").unflatten(-1, (self.heads, -1))


class ChannelDelta(nn.Module):
    """update_t = P (norm(W_tᵀ q_t) ⊙ act(G x_t)): what layers share whose W_t a decay a channel and a delta rule make.

    Queries and keys have length 1 after the convolution and SiLU; G has rank M and a bias. State: ``weights``
    (B, H, K, M), ``convolution`` (B, span − 1, H (2K + M)).
    """

    def __init__(self, options: ChannelDeltaOptions, context: Context):
        super().__init__()
        width, generator = context.width, context.generator
        self.heads = options.heads
        self.key_width, self.value_width = options.key_width(width), options.value_width(width)
        self.most = 2.0 if options.negative_eigenvalues else 1.0
        keys, values = self.heads * self.key_width, self.heads * self.value_width
        self.scores = context.kernels.bind(
            "decayed_scores", sizes={"key": self.key_width}, needs=("gradient", "resets")
        )
        self.recurrence: Recurrence = partial(recurrence, scores=self.scores)
        self.query = projection(width, keys, generator)
        self.key = projection(width, keys, generator)
        self.value = projection(width, values, generator)
        short = context.kernels.bind(
            "short_convolution",
            sizes={"key": self.key_width, "span": options.convolution},
            needs=("gradient", "resets"),
        )
        self.convolution = CausalConvolution(2 * keys + values, options.convolution, generator, short, "uniform")
        self.build_writing(options, context)
        self.norm = nn.RMSNorm(self.value_width, eps=EPSILON * self.key_width)
        self.gate = LowRank(width, self.value_width, values, generator, bias=True)
        # As many updates as there are blocks add up in the stream.
        self.output = projection(values, width, generator, gain=(2 * context.depth) ** -0.5)

    def build_writing(self, options: Any, context: Context) -> None:
        """Makes what ``writing`` reads."""
        raise NotImplementedError

    def writing(self, x: Tensor, low: Tensor, key: Tensor, value: Tensor, signals: dict[str, Tensor]) -> Writing:
        """What tokens x (B, N, D), ``low`` in the precision of products, with key (B, N, H, K) and value (B, N, H, M)
        do to W."""
        raise NotImplementedError

    def opened(self, gate: Tensor) -> Tensor:
        """The activation of the gate before the output."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        state = {} if state is None else state
        low = lowered(x)
        projected = joined(low, (self.query, self.key, self.value))
        (query, key, value), convolved = self.convolution(
            projected, self.heads, self.key_width, state.get("convolution"), tokens
        )
        writing = self.writing(x, low, key, value, signals)
        read, weights = self.recurrence(query, writing, state.get("weights"), tokens.starts(), tokens.valid)
        dtype = self.norm.weight.dtype
        read = self.norm(read.to(dtype)) * self.opened(self.gate(low).to(dtype)).unflatten(-1, (self.heads, -1))
        update = self.output(read.flatten(2).to(projected.dtype))
        return LayerOutput(update, {"weights": weights, "convolution": convolved})


class Kda(ChannelDelta):
    """W_t = (I − β k kᵀ) diag(e^{g}) W_{t−1} + β k vᵀ, with σ before the output.

    Where g is of a signal it is −Γ. Source: Kimi Team, arXiv:2510.26692.
    """

    def build_writing(self, options: KdaOptions, context: Context) -> None:
        self.recurrence = channel_decay_kernel("kda", options.kernel, self.scores)
        self.use_signal = options.decay == "signal"
        self.dynamics = Dynamics(
            context.width, self.heads, self.key_width, self.value_width, self.most, not self.use_signal,
            context.generator,
        )
        if self.use_signal:
            self.dynamics.channels(torch.empty(context.signals["decay"]))

    def writing(self, x: Tensor, low: Tensor, key: Tensor, value: Tensor, signals: dict[str, Tensor]) -> Writing:
        log_decay, rate = self.dynamics(x, signals["decay"] if self.use_signal else None)
        scaled = key * rate[..., None]
        return Writing(scaled, value, log_decay, -key * log_decay.exp(), scaled)

    def opened(self, gate: Tensor) -> Tensor:
        return gate.sigmoid()
