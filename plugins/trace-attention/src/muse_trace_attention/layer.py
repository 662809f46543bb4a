"""The layer, the bounds that it can take, and what it carries from call to call.

Letters: B batch rows, N tokens, D width, H query heads, G key-value heads, K head size, S carried slots, P heads of the
resolvent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.attention import head_size, present, rotate
from muse_core.model.context import Context
from muse_core.model.precision import lowered
from muse_core.model.states import last_valid
from muse_kernels.trace_arguments import Carried, Traced, sums_in_documents
from muse_trace_attention.options import TraceAttentionOptions

LEAST = 1e-6
"""Smallest b², where the theory gives none because the potential vanishes."""


class TraceAttention(nn.Module):
    """o_t = s_t Σ_j softmax_j(q_t·k_j/√K) v_j over the tokens j ≤ t of t's document, and of its window if there is one,
    with s_t in (0, 1] such that Σ_{r ≤ t} s_r² ‖p_r‖² < b_t². Source: mathematics §6.

    State: ``key`` and ``value`` (B, S, G, K), ``visible`` (B, S) bool: the slot holds a token of the present document,
    the last ones of each row; ``squares`` and ``used`` (B, H), Σ ‖p‖² and Σ s² ‖p‖² of that document; with the bound of
    the theory ``potential`` (B, H), Σ V²/(Γ + η)². S grows by N a call, with a window up to W − 1.
    """

    def __init__(self, options: TraceAttentionOptions, context: Context):
        super().__init__()
        self.options = options
        self.heads = options.heads
        self.groups = options.key_value_heads or options.heads
        self.size = head_size(context.width, options.heads, rotary=options.rotary)
        self.kernel = context.kernels.bind(
            "trace_attention", sizes={"key": self.size, "value": self.size}, needs=("gradient", "resets")
        )
        self.query = nn.Linear(context.width, self.heads * self.size, bias=False)
        self.key = nn.Linear(context.width, self.groups * self.size, bias=False)
        self.value = nn.Linear(context.width, self.groups * self.size, bias=False)
        self.output = nn.Linear(self.heads * self.size, context.width, bias=False)
        for projection in (self.query, self.key, self.value):
            nn.init.normal_(projection.weight, std=context.width**-0.5)
        nn.init.normal_(self.output.weight, std=(2 * context.depth * context.width) ** -0.5)
        self.query_norm = self.key_norm = None
        if options.query_key_norm:
            self.query_norm = nn.RMSNorm(self.size, eps=1e-6)
            self.key_norm = nn.RMSNorm(self.size, eps=1e-6)
        self.dynamics = LearnedBound(self.heads, options.initial_bound) if options.bound == "learned" else None

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        low = lowered(x)
        query, key, value = self.projected(low, tokens)
        with torch.autocast(x.device.type, enabled=False):
            bound, kept = self.bound(x, state, signals, tokens)
            initial = None
            if state is not None:
                initial = Carried(state["key"], state["value"], state["visible"], state["squares"])
            traced, final = self.kernel(
                query, key, value, bound, window=self.options.window, knee=self.options.knee, initial=initial,
                resets=tokens.starts(),
            )  # fmt: skip
            kept |= self.carried(key, value, traced, final, state, tokens)
            used, metrics = measured(traced, bound, state, tokens)
            kept["used"] = used
        return LayerOutput(self.output(traced.output.flatten(-2)), kept, metrics=metrics)

    def projected(self, x: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, N, H, K), key and value (B, N, G, K)."""
        query, key, value = (part(x).unflatten(-1, (-1, self.size)) for part in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            dtype = torch.promote_types(x.dtype, torch.float32)
            query, key = self.query_norm(query.to(dtype)), self.key_norm(key.to(dtype))
        if self.options.rotary:
            query = rotate(query, tokens.positions, self.options.rotary_base)
            key = rotate(key, tokens.positions, self.options.rotary_base)
        return query.to(value.dtype), key.to(value.dtype), value

    def bound(
        self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """b_t (B, N, H), in float32 at least, and what of it is carried on."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self.options.bound == "theory":
            share = grouped(signals["damped_potential"].to(dtype).square(), self.heads)
            earlier = None if state is None else state["potential"]
            sums = sums_in_documents(share, earlier, tokens.starts())[0].to(dtype)
            kept = {"potential": last_valid(sums, earlier, tokens.valid)}
            return self.options.factor * sums.clamp(min=LEAST).sqrt(), kept
        place = (tokens.positions + 1).to(dtype)[..., None]
        if self.options.growth == "harmonic":
            growth = (torch.digamma(place + 1) + EULER).sqrt()
        else:
            growth = place.sqrt() if self.options.growth == "linear" else torch.ones_like(place)
        constant = self.options.bound if self.dynamics is None else self.dynamics().to(dtype)
        return (constant * growth).expand(*x.shape[:2], self.heads), {}

    def carried(
        self, key: Tensor, value: Tensor, traced: Traced, final: Carried, state: State, tokens: Tokens
    ) -> dict[str, Tensor]:
        """The state after each row's last valid token, in float32 at least."""
        dtype = torch.promote_types(key.dtype, torch.float32)
        keys, values, visible = final.key, final.value, final.visible
        if tokens.valid is not None:
            kept = keys.shape[1]
            before = () if state is None else (state["key"], state["value"], state["visible"])
            running = present(key, tokens)
            starts = tokens.starts()
            if starts is not None:
                later = starts.flip(1).cumsum(1).flip(1) - starts.long()
                running = running & (later == 0)
                if state is not None:
                    before = (*before[:2], before[2] & ~starts.any(1, keepdim=True))
            slots = [key, value, running]
            if state is not None:
                slots = [torch.cat((old.to(new.dtype), new), dim=1) for old, new in zip(before, slots, strict=True)]
            end = slots[2].shape[1] - key.shape[1] + tokens.valid.sum(1, keepdim=True)
            index = end - kept + torch.arange(kept, device=key.device)
            rows = torch.arange(index.shape[0], device=key.device)[:, None]
            keys, values, visible = (x[rows, index.clamp(min=0)] for x in slots)
            visible = visible & (index >= 0)
        earlier = None if state is None else state["squares"]
        return {
            "key": keys.to(dtype, copy=True),  # a view would keep all S + N slots in memory
            "value": values.to(dtype, copy=True),
            "visible": visible.clone(),
            "squares": last_valid(traced.squares, earlier, tokens.valid),
        }


class LearnedBound(nn.Module):
    """A positive number of each head, e^λ."""

    def __init__(self, heads: int, initial: float):
        super().__init__()
        self.logarithm = nn.Parameter(torch.full((heads,), math.log(initial)))

    def forward(self) -> Tensor:
        """(H,)."""
        return self.logarithm.exp()


EULER = 0.57721566490153286
"""ψ(t + 1) + this is 1 + 1/2 + … + 1/t."""


def grouped(squares: Tensor, heads: int) -> Tensor:
    """(B, N, P) → (B, N, H): means of equal groups, or of all where H does not divide P."""
    given = squares.shape[-1]
    if given % heads == 0:
        return squares.unflatten(-1, (heads, given // heads)).mean(-1)
    return squares.mean(-1, keepdim=True).expand(*squares.shape[:-1], heads)


@torch.no_grad()
def measured(traced: Traced, bound: Tensor, state: State, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ s² ‖p‖² after the last valid token (B, H), and over valid tokens: ``scaled``, the share of rows with s < 1;
    ``scale``, the mean s; ``norm`` and ``plain_norm``, mean Hilbert–Schmidt norms of the prefix with and without
    scales; ``bound``, the mean b; ``filled_max``, the largest norm over its bound, below 1."""
    scale, squares = traced.scale, traced.squares
    before = torch.zeros_like(squares[:, 0]) if state is None else state["squares"]
    before = torch.cat((before[:, None], squares[:, :-1]), dim=1)
    starts = tokens.starts()
    if starts is not None:
        before = before.masked_fill(starts[..., None], 0.0)
    earlier = None if state is None else state["used"]
    used = sums_in_documents(scale.square() * (squares - before), earlier, starts)[0].to(scale.dtype)
    norm = used.clamp(min=0).sqrt()
    weight = torch.ones_like(scale[..., 0]) if tokens.valid is None else tokens.valid.to(scale.dtype)
    weight = (weight / weight.sum().clamp(min=1))[..., None] / scale.shape[-1]
    filled = norm / bound
    if tokens.valid is not None:
        filled = filled.masked_fill(~tokens.valid[..., None], 0.0)
    found = {"scaled": (scale < 1).to(scale.dtype), "scale": scale, "norm": norm, "plain_norm": squares.sqrt()}
    means = {name: (x * weight).sum() for name, x in (found | {"bound": bound}).items()}
    return last_valid(used, earlier, tokens.valid), means | {"filled_max": filled.amax()}
