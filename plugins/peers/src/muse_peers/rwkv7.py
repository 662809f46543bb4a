"""RWKV-7's time mixing: a memory with a decay for every channel from which a learned direction is removed.

Shapes: B batch, N tokens, D width, H heads, K width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.context import Context
from muse_core.model.convolution import carried
from muse_core.model.precision import lowered
from muse_core.model.projections import projection
from muse_peers.initial import LowRank, orthogonal
from muse_peers.kernels import channel_decay_kernel
from muse_peers.options import Rwkv7Options
from muse_peers.recurrence import Writing

FASTEST = math.exp(-0.5)
"""Largest decay −g of a token."""
SHIFTED = ("read", "decay", "key", "value", "rate", "gate")
"""What is mixed with the token before, each by gains of its own."""


class Rwkv7(nn.Module):
    """update_t = P ((norm(W_tᵀ r_t) + (r·(ρ ⊙ k)) v) ⊙ G(x_t)), W_t = (diag(e^{g}) − κ̂ (a ⊙ κ̂)ᵀ)ᵀ W_{t−1} + k vᵀ.

    κ̂ is a key of length 1, a = σ(…) per channel, g = −e^{−1/2} σ(…) per channel; each of the six projections reads a
    mixture of the token and the one before. Layers after the first mix the first one's values into theirs, which the
    signal ``first_value`` (B, N, D) hands on. State: ``weights`` (B, H, K, K), ``inputs`` (B, 1, D). First values as in
    the authors' code, by depth, but for the output matrix. Source: Peng and others, arXiv:2503.14456.
    """

    def __init__(self, options: Rwkv7Options, context: Context):
        super().__init__()
        width, generator, heads = context.width, context.generator, options.heads
        self.heads, self.size = heads, options.head_width(width)
        self.publish = context.publish
        scores = context.kernels.bind("decayed_scores", sizes={"key": self.size}, needs=("gradient", "resets"))
        self.recurrence = channel_decay_kernel("rwkv7", options.kernel, scores)
        depth, here = max(1, context.depth), context.block
        start = Start(width, self.size, here / max(1, depth - 1), 1 - here / depth)
        self.shift = nn.ParameterDict({name: start.shift(name) for name in SHIFTED})
        self.read, self.value = (orthogonal(width, width, generator) for _ in range(2))
        self.key = orthogonal(width, width, generator, gain=0.1)
        narrow, wide = options.ranks(width)
        self.decay = LowRank(width, narrow, width, generator, bias=start.decay(), zero=True)
        self.rate = LowRank(width, narrow, width, generator, bias=start.rate(), zero=True)
        self.gate = LowRank(width, wide, width, generator, zero=True)
        self.mix = None
        if "first_value" in context.signals:
            self.mix = LowRank(width, options.value_rank(width), width, generator, bias=start.mix(), zero=True)
        self.removed = nn.Parameter(start.removed())
        self.strengthened = nn.Parameter(torch.full((width,), 1.02))
        self.bonus = nn.Parameter(torch.full((heads, self.size), -0.04))
        self.norm = nn.GroupNorm(heads, width, eps=self.size * 1e-5)
        nn.init.constant_(self.norm.weight, ((here + 1) / depth) ** 0.7)
        # As many updates as there are blocks add up in the stream; the authors start this matrix at zero.
        self.output = projection(width, width, generator, gain=(2 * depth) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        state = {} if state is None else state
        low = lowered(x)
        before, inputs = previous(low, state.get("inputs"), tokens)
        difference = before - low
        mixed = {name: low + difference * gain.to(low.dtype) for name, gain in self.shift.items()}
        read, key, value = self.read(mixed["read"]), self.key(mixed["key"]), self.value(mixed["value"])
        first = value if self.mix is None else signals["first_value"].to(value.dtype)
        if self.mix is not None:
            value = torch.lerp(value, first, self.mix(mixed["value"]).sigmoid())
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            log_decay = -FASTEST * self.decay(mixed["decay"].to(dtype), torch.tanh).sigmoid()
            rate = self.rate(mixed["rate"].to(dtype)).sigmoid()
            read, key, value = read.to(dtype), key.to(dtype), value.to(dtype)
            removed = F.normalize(self.by_head(key * self.removed), dim=-1)
            key = key + key * (rate - 1) * self.strengthened
            read, key, values, rate, log_decay = map(self.by_head, (read, key, value, rate, log_decay))
            # The values are those of the projection: they fit its precision, by which a kernel is chosen.
            writing = Writing(key, values.to(low.dtype), log_decay, -removed, removed * rate)
            answer, weights = self.recurrence(read, writing, state.get("weights"), tokens.starts(), tokens.valid)
            answer = self.norm(answer.to(dtype).flatten(2).flatten(0, 1)).view_as(value)
            answer = answer + ((read * key * self.bonus).sum(-1, keepdim=True) * values).flatten(2)
        gated = answer * self.gate(mixed["gate"], torch.sigmoid).to(answer.dtype)
        published = {"first_value": first} if "first_value" in self.publish else {}
        return LayerOutput(self.output(gated.to(low.dtype)), {"weights": weights, "inputs": inputs}, published)

    def by_head(self, x: Tensor) -> Tensor:
        """(B, N, D) → (B, N, H, K)."""
        return x.unflatten(-1, (self.heads, self.size))


def previous(x: Tensor, state: Tensor | None, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Each token's predecessor in its document, zero for the first (B, N, D), and the last input (B, 1, D)."""
    last = x.new_zeros(x.shape[0], 1, x.shape[2]) if state is None else state.to(x.dtype)
    before = torch.cat((last, x[:, :-1]), dim=1)
    if tokens.resets is not None:
        before = before.masked_fill(tokens.resets[..., None], 0.0)
    return before, carried(last, x, tokens)


class Start:
    """First values of a layer by channel n of D, at a share ``late`` of the depth and ``left`` of it before the end."""

    def __init__(self, width: int, size: int, late: float, left: float):
        self.width, self.late, self.left = width, late, left
        channel = torch.arange(width, dtype=torch.float64)
        self.share = channel / width
        self.line = channel / max(1, width - 1)
        middle = max(1, size - 1) / 2
        bent = (channel % size - middle) / middle
        self.bent = bent * bent.abs()

    def shift(self, name: str) -> nn.Parameter:
        power = {"read": 0.2, "gate": 0.2, "decay": 0.9, "rate": 0.9, "key": 0.7, "value": 0.7}[name]
        return nn.Parameter((1 - self.share ** (power * self.left)).to(torch.get_default_dtype()))

    def decay(self) -> Tensor:
        return -6 + 6 * self.line ** (1 + self.late**0.3) + 0.5 + 2.5 * self.bent

    def rate(self) -> Tensor:
        return -0.19 + 0.3 * self.bent + 0.4 * (self.line - 0.5)

    def mix(self) -> Tensor:
        return 0.73 - 0.4 * (self.line - 0.5)

    def removed(self) -> Tensor:
        return (0.71 - 0.1 * (self.line - 0.5)).to(torch.get_default_dtype())
