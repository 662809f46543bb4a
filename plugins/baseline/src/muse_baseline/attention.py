"""Causal softmax attention within a document, over everything or a sliding window.

Letters: B batch rows, N tokens, D width, H query heads, G key-value heads, K head size, W window, S cached slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muse_baseline.options import AttentionOptions
from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.attention import (
    attend,
    attend_window,
    carried_slots,
    documents,
    head_size,
    heads_of,
    newest,
    normalised,
    present,
    rotate,
    visible_to,
)
from muse_core.model.context import Context
from muse_core.model.convolution import PlainConvolution


class Attention(nn.Module):
    """o_t = Σ_j softmax_j(q_t·k_j/√K) v_j over the tokens j ≤ t of t's document, and of its window if there is one.

    State: ``key`` and ``value`` (B, S, G, K), ``visible`` (B, S) bool: the slot holds a token of the present document.
    S grows by N a call, or stays W with a window. With a convolution also ``convolution`` (B, span − 1, (H + 2 G) K),
    its last inputs.
    """

    def __init__(self, options: AttentionOptions, context: Context):
        super().__init__()
        self.options = options
        self.heads = options.heads
        self.groups = options.key_value_heads or options.heads
        self.size = head_size(context.width, options.heads, rotary=options.rotary)
        self.query = nn.Linear(context.width, self.heads * self.size, bias=False)
        self.key = nn.Linear(context.width, self.groups * self.size, bias=False)
        self.value = nn.Linear(context.width, self.groups * self.size, bias=False)
        self.output = nn.Linear(self.heads * self.size, context.width, bias=False)
        for projection in (self.query, self.key, self.value):
            nn.init.normal_(projection.weight, std=context.width**-0.5)
        nn.init.normal_(self.output.weight, std=(2 * context.depth * context.width) ** -0.5)
        self.convolution = self.query_norm = self.key_norm = None
        if options.convolution:
            channels = (self.heads + 2 * self.groups) * self.size
            self.convolution = PlainConvolution(channels, options.convolution, context.generator, context.kernels.bind)
        if options.query_key_norm:
            self.query_norm = nn.RMSNorm(self.size, eps=1e-6)
            self.key_norm = nn.RMSNorm(self.size, eps=1e-6)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        query, key, value, convolved = self.projected(x, state, tokens)
        if self.options.rotary:
            query = rotate(query, tokens.positions, self.options.rotary_base)
            key = rotate(key, tokens.positions, self.options.rotary_base)
        if self.options.window is None and state is None and tokens.resets is None:
            # Without a mask torch may choose a kernel that never forms the N × N scores.
            mixed = attend(query, key, value)
            state = {"key": key, "value": value, "visible": present(x, tokens)}
        else:
            mixed, state = self.attend_cached(query, key, value, state, tokens)
        dtype = torch.promote_types(x.dtype, torch.float32)
        state |= {"key": state["key"].to(dtype), "value": state["value"].to(dtype)} | convolved
        return LayerOutput(self.output(mixed.flatten(-2)), state)

    def projected(
        self, x: Tensor, state: State, tokens: Tokens
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Query (B, N, H, K), key and value (B, N, G, K), convolved and normalised, and the convolution's state."""
        parts = self.query(x), self.key(x), self.value(x)
        (query, key, value), kept = heads_of(parts, self.size, self.convolution, state, tokens)
        return normalised(self.query_norm, query), normalised(self.key_norm, key), value, kept

    def attend_cached(
        self, query: Tensor, key: Tensor, value: Tensor, state: State, tokens: Tokens
    ) -> tuple[Tensor, State]:
        """Attention to cached slots and the tokens of this call; returns (B, N, H, K) and the new state."""
        window = self.options.window
        state = carried_slots(state, key, value, window or 0)
        slots = state["visible"].shape[1]
        own = documents(key, tokens)
        keys = torch.cat((state["key"].to(key.dtype), key), dim=1)
        values = torch.cat((state["value"].to(value.dtype), value), dim=1)
        document = torch.cat((torch.where(state["visible"], 0, -1), own), dim=1)
        if window is None:
            mixed = attend(query, keys, values, mask=visible_to(own, document, slots))
        else:
            mixed = attend_window(query, keys, values, own, document, window)
        last = own[:, -1:]
        visible = (document == last) & torch.cat((state["visible"], present(key, tokens)), dim=1)
        state = {"key": keys, "value": values, "visible": visible}
        return mixed, state if window is None else newest(state, window, tokens.valid)
