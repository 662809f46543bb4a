"""Queries projected on the keys that a memory has been written by, and a memory that is read so.

Projection of queries on keys is from TNT (Li et al., arXiv:2511.07343), there by Σ k kᵀ/‖k‖² within a shard of text.

Letters: B batch rows, N tokens, D width, H heads, K key size, M value size, P persistent keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.fast_weights import Writes, by_period
from muse_core.model.context import Context
from muse_core.model.convolution import CausalConvolution
from muse_core.model.precision import lowered
from muse_core.model.projections import joined, projection
from muse_kernels import unit_length
from muse_mag.options import EarlierMemoryOptions, QueryProjectionOptions
from muse_mag.persistent import Moments, PersistentMemory
from muse_mag.shards import by_shard

Kernel = Callable[..., tuple[Tensor, Tensor]]
FEWEST = 1e-6
"""Least n that is divided by: keys that are all zero project a query to zero."""


def since_start(amount: Tensor, starts: Tensor | None, carried: Tensor | None) -> Tensor:
    """Running sums of ``amount`` (B, N, H) ≥ 0 since the latest start, or over ``carried`` (B, H) before the first.
    Summed in float64: the difference of two long sums is what counts. No gradient."""
    amount = amount.detach().double()
    total = amount.cumsum(1)
    before = amount.new_zeros(amount.shape[0], 1, amount.shape[2])
    if carried is not None:
        before = before - carried.double()[:, None]
    if starts is not None:
        # Sums never fall, so the largest of those before starts is the latest one's.
        before = torch.where(starts[..., None], total - amount, before).cummax(1).values
    return total - before


class QueryProjection(nn.Module):
    """q'_t = M_t q_t / n_t with M_t = M_p + Σ k kᵀ and n_t = n_p + Σ ‖k‖² over the keys up to t of its document.

    Keys have length 1 and no rotation, so that n_t counts them. State: ``weights`` (B, H, K, K), the sum without M_p,
    and ``norm`` (B, H), that without n_p. Source: mathematics §3.
    """

    def __init__(self, kernel: Kernel, norm_persistent: bool):
        super().__init__()
        self.kernel, self.norm_persistent = kernel, norm_persistent

    def forward(
        self, query: Tensor, key: Tensor, persistent: Moments | None, state: State, tokens: Tokens
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """query, key (B, N, H, K), key of length 1 → q' (B, N, H, K) in the dtype of query, and the state."""
        dtype = torch.promote_types(query.dtype, torch.float32)
        unforgotten = torch.zeros(key.shape[:3], dtype=dtype, device=key.device)
        writes = Writes(query, key, key, unforgotten, torch.ones_like(unforgotten))
        reading = by_period(self.kernel, [], writes, state, tokens, rule="hebbian", period=1)
        squares = key.to(dtype).square().sum(-1)
        norm = since_start(squares, tokens.resets, None if state is None else state["norm"]).to(dtype)
        new_state = {**reading.state, "norm": norm[:, -1]}
        projected = reading.output.to(dtype)
        if persistent is not None:
            projected = projected + torch.einsum("bnhk,hkl->bnhl", query.to(dtype), persistent.keys.to(dtype))
            if self.norm_persistent:
                norm = norm + persistent.norm.to(dtype)
        return (projected / norm.clamp_min(FEWEST)[..., None]).to(query.dtype), new_state


class Dynamics(nn.Module):
    """log-decay g = −softplus(w·x + c), rate β = σ(u·x + b), and the share σ(a) of projected queries, in fp32 at least.

    softplus(c) starts log-spaced over the heads between the two ``initial_decay`` bounds, β around 1/2 and at most K
    times the head's first Γ, so that writes erase an association no sooner than it decays, and the share at 1/2.
    """

    def __init__(self, width: int, heads: int, key_size: int, initial_decay: tuple[float, float], generator: Any):
        super().__init__()
        slow, fast = torch.tensor(initial_decay, dtype=torch.float64)
        decay = torch.logspace(slow.log10(), fast.log10(), heads, dtype=torch.float64)
        self.heads = heads
        self.map = nn.Linear(width, 2 * heads)
        nn.init.normal_(self.map.weight, std=0.5 * width**-0.5, generator=generator)
        with torch.no_grad():
            self.map.bias.copy_(torch.cat((decay.expm1().log(), (key_size * decay).clamp_max(0.5).logit())))
        self.share = nn.Parameter(torch.zeros(heads))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, N, D) → g and β, each (B, N, H)."""
        with torch.autocast(x.device.type, enabled=False):
            forgetting, writing = self.map(x.to(torch.promote_types(x.dtype, torch.float32))).chunk(2, dim=-1)
            return F.logsigmoid(-forgetting), torch.sigmoid(writing)


class ProjectedMemory(nn.Module):
    """P norm(W_tᵀ r_t) as update or signal ``memory`` (B, N, D); r_t = (1 − s) q_t + s K q'_t with q' of
    ``QueryProjection`` and a learned share s.

    W_t = W_p + D_t, D_t = e^{g} (I − β k kᵀ) D_{t−1} + β k (v − W_pᵀ k)ᵀ: the delta rule from W_p = Σ k vᵀ of the
    persistent memory, and forgetting towards it. A shard or a document starts with D = 0, M = M_p and n = n_p. K M / n
    is the identity where keys point everywhere alike. Queries and keys have length 1. State: ``memory`` with
    ``weights`` (B, H, K, M) of D, ``projection`` of ``QueryProjection``, and with a convolution ``convolution``
    (B, span − 1, 3 D). Metrics: ``energy`` (mean ‖D‖² of a head after the last token), ``rate`` and ``decay`` (means
    of β and Γ), ``share`` (mean s).
    """

    def __init__(self, options: QueryProjectionOptions, context: Context):
        super().__init__()
        width, generator = context.width, context.generator
        if width % options.heads:
            raise ValueError(f"heads = {options.heads} does not divide the width {width}")
        self.heads, self.size = options.heads, width // options.heads
        self.shard, self.adds, self.publish = options.shard, not options.adds_nothing, context.publish
        sizes = {"key": self.size, "value": self.size}
        self.kernel = context.kernels.bind("fast_weights", sizes=sizes, needs=("gradient", "resets"))
        self.query = projection(width, width, generator)
        self.key = projection(width, width, generator)
        self.value = projection(width, width, generator)
        self.convolution = None
        if options.convolution:
            short = context.kernels.bind(
                "short_convolution",
                sizes={"key": self.size, "span": options.convolution},
                needs=("gradient", "resets"),
            )
            self.convolution = CausalConvolution(3 * width, options.convolution, generator, short)
        self.dynamics = Dynamics(width, self.heads, self.size, options.initial_decay, generator)
        self.projection = QueryProjection(self.kernel, options.norm_persistent)
        self.persistent = None
        if options.persistent:
            # Keys of about length 1, as those of tokens.
            self.persistent = PersistentMemory(
                options.persistent, self.heads, self.size, self.size, generator, scale=self.size**-0.5
            )
        self.norm = nn.RMSNorm(self.size, eps=1e-6)
        self.output = projection(width, width, generator, gain=(2 * context.depth) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        (answer, decay, rate), state = by_shard(self.within, x, state, tokens, self.shard)
        return LayerOutput(
            answer if self.adds else torch.zeros_like(x),
            state,
            {"memory": answer} if "memory" in self.publish else {},
            metrics=self.measures(state["memory"]["weights"], decay, rate),
        )

    def within(self, x: Tensor, state: State, tokens: Tokens) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """What is read (B, N, D), Γ and β (B, N, H) of tokens in one shard, and the state."""
        state = {} if state is None else state
        (query, key, value), new_state = self.projected(lowered(x), state, tokens)
        moments = None if self.persistent is None else self.persistent.moments()
        aligned, new_state["projection"] = self.projection(query, key, moments, state.get("projection"), tokens)
        share = torch.sigmoid(self.dynamics.share)[:, None]
        query = ((1 - share) * query + share * self.size * aligned).to(query.dtype)
        log_decay, rate = self.dynamics(x)
        if moments is not None:
            value = value - held(moments, key)
        writes = Writes(query, key, value, log_decay, rate)
        reading = by_period(self.kernel, [], writes, state.get("memory"), tokens, rule="delta", period=1)
        new_state["memory"] = reading.state
        read = reading.output if moments is None else reading.output + held(moments, query)
        read = self.norm(read.to(torch.promote_types(read.dtype, torch.float32)))
        return (self.output(read.flatten(2).to(value.dtype)), -log_decay, rate), new_state

    @torch.no_grad()
    def measures(self, weights: Tensor, decay: Tensor, rate: Tensor) -> dict[str, Tensor]:
        """The metrics of the class."""
        energy = weights.square().sum((-1, -2)).mean()
        share = self.dynamics.share.sigmoid().mean()
        return {"energy": energy, "decay": decay.mean(), "rate": rate.mean(), "share": share}

    def shard_start(self) -> list[Tensor]:
        """The persistent keys and values."""
        return [] if self.persistent is None else list(self.persistent.parameters())

    def projected(
        self, x: Tensor, state: dict[str, Any], tokens: Tokens
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Query and key of length 1 and value, each (B, N, H, K), and the convolution's state."""
        both = joined(x, (self.query, self.key, self.value))
        if self.convolution is not None:
            parts, kept = self.convolution(both, self.heads, self.size, state.get("convolution"), tokens)
            return parts, {"convolution": kept}
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in both.chunk(3, dim=-1))
        return (unit_length(query), unit_length(key), value), {}


def held(moments: Moments, key: Tensor) -> Tensor:
    """W_pᵀ k (B, N, H, M) for keys (B, N, H, K), in their dtype."""
    return torch.einsum("bnhk,hkm->bnhm", key, moments.values.to(key.dtype))


class EarlierMemory(nn.Module):
    """update_t = the signal ``memory`` of an earlier layer. The state is empty."""

    def __init__(self, options: EarlierMemoryOptions, context: Context):
        super().__init__()

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D) says the dtype."""
        return LayerOutput(signals["memory"].to(x.dtype), {})
