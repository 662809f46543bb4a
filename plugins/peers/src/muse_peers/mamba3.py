"""Mamba-3 with one input and one output a head: Mamba-2's memory with a complex decay and the trapezoidal rule.

Shapes: B batch, N tokens, D width, H heads, S states (key width), P head width (value width), R turned pairs of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.angles import turns
from muse_core.model.context import Context
from muse_core.model.convolution import carried
from muse_core.model.precision import lowered
from muse_core.model.projections import projection, widened
from muse_peers.initial import step_bias
from muse_peers.options import Mamba3Options

SLOWEST = 1e-4
"""A is this at least."""


class Change(NamedTuple):
    """What a token does beside its writing."""

    log_decay: Tensor
    """(B, N, H): g = −A Δ ≤ 0."""
    present: Tensor
    """(B, N, H): λ Δ, the weight of the token's own write."""
    past: Tensor
    """(B, N, H): (1 − λ) Δ, with which the write of the token before comes once more, decayed by the present g."""
    angle: Tensor
    """(B, N, H, R): π tanh(θ) Δ, by which the pairs turn."""


class Dynamics(nn.Module):
    """Δ = softplus(·+ b), A = softplus(·) and λ = σ(·) per head, θ per pair, of projections of x, in fp32 at least."""

    def __init__(self, width: int, heads: int, pairs: int, generator: torch.Generator):
        super().__init__()
        self.heads, self.pairs = heads, pairs
        self.projection = projection(width, 3 * heads + pairs, generator, gain=3**-0.5)
        self.bias = step_bias(heads, generator)

    def forward(self, x: Tensor, valid: Tensor | None) -> Change:
        """x (B, N, D), as matrix products take it; where ``valid`` (B, N) is false nothing changes."""
        heads = self.heads
        with torch.autocast(x.device.type, enabled=False):
            step, decay, share, angle = widened(x, (self.projection,)).split((heads, heads, heads, self.pairs), dim=-1)
            # softplus; torch 2.13 miscompiles its backward pass for the strides of a kernel's gradient.
            step, decay = -F.logsigmoid(-(step + self.bias)), -F.logsigmoid(-decay)
            share, angle = share.sigmoid(), math.pi * angle.tanh()
            if valid is not None:
                step = step * valid[..., None]
            return Change(
                -decay.clamp(min=SLOWEST) * step, share * step, (1 - share) * step, angle[:, :, None] * step[..., None]
            )


class Mamba3(nn.Module):
    """update_t = P ((Re(h_tᵀ c̄_t) + d ⊙ x_t) ⊙ SiLU(z_t)), a = e^{−AΔ − iπ tanh(θ) Δ},
    h_t = a (h_{t−1} + (1 − λ) Δ b_{t−1} x_{t−1}ᵀ) + λ Δ b_t x_tᵀ.

    The first ``rotated`` of the states are pairs that stand for complex numbers, the others are real. b and c are
    normalised projections that all heads share, with a bias of each head. Keys and queries turned by the sum of all
    angles make the decay real. A key is written once, with its weight and that of its second coming, by
    ``fast_weights``; a token reads what was written before it and adds its own, so that nothing of the next token is in
    what it reads. State: ``weights`` (B, H, S, P), ``angle`` (B, H, R), and ``key`` (B, 1, H S) and ``value``
    (B, 1, H P) of the last token. Source: Lahoti and others, arXiv:2603.15569.
    """

    def __init__(self, options: Mamba3Options, context: Context):
        super().__init__()
        width, generator = context.width, context.generator
        self.states, self.inner, self.heads = options.states, options.inner(width), options.heads(width)
        self.pairs = options.pairs()
        self.kernel = context.kernels.bind(
            "fast_weights",
            sizes={"key": self.states, "value": options.head_width(width)},
            needs=("gradient", "resets"),
        )
        self.input = projection(width, 2 * self.inner + 2 * self.states, generator)
        self.key_norm = nn.RMSNorm(self.states, eps=1e-5)
        self.query_norm = nn.RMSNorm(self.states, eps=1e-5)
        self.key_bias = nn.Parameter(torch.ones(self.heads, self.states))
        self.query_bias = nn.Parameter(torch.ones(self.heads, self.states))
        self.dynamics = Dynamics(width, self.heads, self.pairs, generator)
        self.skip = nn.Parameter(torch.ones(self.heads))
        # As many updates as there are blocks add up in the stream.
        self.output = projection(self.inner, width, generator, gain=(2 * context.depth) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        state = {} if state is None else state
        sizes = (self.inner, self.inner, self.states, self.states)
        low = lowered(x)
        gate, value, key, query = self.input(low).split(sizes, dim=-1)
        value = value.unflatten(-1, (self.heads, -1))
        change = self.dynamics(low, tokens.valid)
        with torch.autocast(x.device.type, enabled=False):
            dtype = change.angle.dtype
            key = self.key_norm(key.to(dtype))[:, :, None] + self.key_bias
            query = self.query_norm(query.to(dtype))[:, :, None] + self.query_bias
            itself = self.skip + change.present * (query * key).sum(-1)
            resets = tokens.starts()
            turned = turns(change.angle, state.get("angle"), resets)
            query, key = rotated(query, turned), rotated(key, turned)
            low = gate.dtype
            read, weights = self.kernel(
                query.to(low),
                key.to(low),
                value,
                change.log_decay,
                # What comes with the token after; the reset of another document discards it.
                change.present + F.pad(change.past[:, 1:], (0, 0, 0, 1)),
                rule="hebbian",
                initial=self._started(state, change.past[:, 0]),
                resets=resets,
                read="before",
            )
            read = change.log_decay.exp()[..., None] * read.to(dtype) + itself[..., None] * value.to(dtype)
            read = read.flatten(2) * F.silu(gate.to(dtype))
        last = {
            name: carried(state.get(name, part.new_zeros(part.shape[0], 1, part.shape[-1])), part, tokens)
            for name, part in (("key", key.flatten(2)), ("value", value.flatten(2)))
        }
        return LayerOutput(self.output(read.to(low)), {"weights": weights, "angle": turned[:, -1], **last})

    def _started(self, state: dict[str, Tensor], past: Tensor) -> Tensor | None:
        """The carried memory with what its last token adds to the first one of these, whose (1 − λ) Δ is ``past``."""
        if not state:
            return None
        weights = state["weights"]
        key, value = (state[name][:, 0].unflatten(-1, (self.heads, -1)).to(weights) for name in ("key", "value"))
        return weights + (past.to(weights)[..., None] * key)[..., None] * value[..., None, :]


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """x (B, N, H, S) with its first 2 R states, as R neighbouring pairs, turned by ``angle`` (B, N, H, R)."""
    pairs = angle.shape[-1]
    first, second = x[..., : 2 * pairs].unflatten(-1, (pairs, 2)).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1).flatten(-2)
    return torch.cat((turned, x[..., 2 * pairs :]), dim=-1)
