"""Sliding-window attention with persistent tokens (Behrouz et al., arXiv:2501.00663; learned keys and values that every
position sees are Sukhbaatar et al., arXiv:1907.01470).

Letters: B batch rows, N tokens, D width, H query heads, G key-value heads, K head size, W window, P persistent tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.attention import (
    Always,
    attend_window,
    carried_slots,
    documents,
    head_size,
    heads_of,
    newest,
    normalised,
    present,
    rotate,
)
from muse_core.model.context import Context
from muse_core.model.convolution import PlainConvolution
from muse_core.model.projections import projection
from muse_mag.options import SlidingWindowOptions, WindowOptions
from muse_mag.persistent import PersistentMemory


class WindowAttention(nn.Module):
    """o_t = Σ_j softmax_j(s_tj) v_j over the persistent tokens and the last W tokens of t's document, t among them.

    s_tj = q_t·k_j/√K, rotated by positions between tokens and not rotated towards persistent ones, so that these look
    alike from every position. State: ``key`` and ``value`` (B, W, G, K), ``visible`` (B, W) bool: the slot holds a
    token of the present document; with a convolution ``convolution`` (B, span − 1, (H + 2 G) K), its last inputs.
    """

    def __init__(self, options: WindowOptions, context: Context):
        super().__init__()
        self.options = options
        self.heads = options.heads
        self.groups = options.key_value_heads or options.heads
        self.size = head_size(context.width, options.heads, rotary=options.rotary)
        self.query = projection(context.width, self.heads * self.size, context.generator)
        self.key = projection(context.width, self.groups * self.size, context.generator)
        self.value = projection(context.width, self.groups * self.size, context.generator)
        self.convolution = self.query_norm = self.key_norm = self.persistent = None
        if options.convolution:
            channels = (self.heads + 2 * self.groups) * self.size
            self.convolution = PlainConvolution(channels, options.convolution, context.generator, context.kernels.bind)
        if options.query_key_norm:
            self.query_norm = nn.RMSNorm(self.size, eps=1e-6)
            self.key_norm = nn.RMSNorm(self.size, eps=1e-6)
        if options.persistent:
            self.persistent = PersistentMemory(
                options.persistent, self.groups, self.size, self.size, context.generator
            )

    def forward(
        self, x: Tensor, state: State, tokens: Tokens, blend: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, N, D) → what the heads read, (B, N, H, K), and the state. ``blend`` changes the queries (B, N, H, K)
        before they are rotated."""
        query, key, value, kept = self.projected(x, state, tokens)
        if blend is not None:
            query = blend(query)
        always = None
        if self.persistent is not None:
            always = self.persistent.tokens()
            always = always._replace(key=normalised(self.key_norm, always.key))
        plain = query
        if self.options.rotary:
            query = rotate(query, tokens.positions, self.options.rotary_base)
            key = rotate(key, tokens.positions, self.options.rotary_base)
        slots = carried_slots(state, key, value, self.options.window)
        own = documents(key, tokens)
        keys = torch.cat((slots["key"].to(key.dtype), key), dim=1)
        values = torch.cat((slots["value"].to(value.dtype), value), dim=1)
        document = torch.cat((torch.where(slots["visible"], 0, -1), own), dim=1)
        near, read = keys, values
        if always is not None and self.options.rotary:
            # Tokens are met in the first half of the entries, persistent ones, not rotated, in the second. Values are
            # as wide as keys for kernels that want it.
            query = torch.cat((query, plain), dim=-1)
            near, read = F.pad(keys, (0, self.size)), F.pad(values, (0, self.size))
            always = Always(F.pad(always.key, (self.size, 0)), F.pad(always.value, (0, self.size)))
        mixed = attend_window(query, near, read, own, document, self.options.window, always, self.size**-0.5)
        mixed = mixed[..., : self.size]
        visible = (document == own[:, -1:]) & torch.cat((slots["visible"], present(key, tokens)), dim=1)
        dtype = torch.promote_types(x.dtype, torch.float32)
        last = newest({"key": keys, "value": values, "visible": visible}, self.options.window, tokens.valid)
        return mixed, {**last, "key": last["key"].to(dtype), "value": last["value"].to(dtype), **kept}

    def projected(self, x: Tensor, state: State, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Query (B, N, H, K), key and value (B, N, G, K), convolved and normalised, and the convolution's state."""
        parts = self.query(x), self.key(x), self.value(x)
        (query, key, value), kept = heads_of(parts, self.size, self.convolution, state, tokens)
        return normalised(self.query_norm, query), normalised(self.key_norm, key), value, kept


class SlidingWindow(nn.Module):
    """update_t = P o_t with o_t of ``WindowAttention``, whose state it has."""

    def __init__(self, options: SlidingWindowOptions, context: Context):
        super().__init__()
        self.attention = WindowAttention(options, context)
        width = self.attention.heads * self.attention.size
        # As many updates as there are blocks add up in the stream.
        self.output = projection(width, context.width, context.generator, gain=(2 * context.depth) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        mixed, state = self.attention(x, state, tokens)
        return LayerOutput(self.output(mixed.flatten(-2)), state)
