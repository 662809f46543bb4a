"""Layers of torch itself under the layer suite."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from muse_core.contracts import State, Tokens
from muse_core.testing import ExternalLayerSuite


def hidden_pairs(tokens: Tokens, length: int) -> Tensor:
    """(B, N, N) bool: query i must not see key j, because j is later or belongs to another document."""
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    if tokens.resets is None:
        return later.expand(tokens.positions.shape[0], -1, -1)
    document = tokens.resets.cumsum(1)
    return later | (document[:, :, None] != document[:, None, :])


class TestMultiheadAttention(ExternalLayerSuite):
    """torch.nn.MultiheadAttention with masks; it has no state."""

    supports = frozenset({"documents", "padding", "autocast", "compiles"})
    heads = 2

    def make(self) -> nn.Module:
        return nn.MultiheadAttention(self.width, self.heads, batch_first=True)

    def step(self, layer: nn.Module, x: Tensor, state: State, tokens: Tokens) -> tuple[Tensor, State]:
        mask = hidden_pairs(tokens, x.shape[1]).repeat_interleave(self.heads, 0)
        padding = None if tokens.valid is None else ~tokens.valid
        return layer(x, x, x, attn_mask=mask, key_padding_mask=padding, need_weights=False)[0], None


class TestTransformerEncoderLayer(TestMultiheadAttention):
    """torch.nn.TransformerEncoderLayer, whose evaluation takes another path than its training."""

    def make(self) -> nn.Module:
        return nn.TransformerEncoderLayer(self.width, self.heads, 2 * self.width, dropout=0.0, batch_first=True)

    def step(self, layer: nn.Module, x: Tensor, state: State, tokens: Tokens) -> tuple[Tensor, State]:
        mask = hidden_pairs(tokens, x.shape[1]).repeat_interleave(self.heads, 0)
        padding = None if tokens.valid is None else ~tokens.valid
        return layer(x, src_mask=mask, src_key_padding_mask=padding), None


class TestGRU(ExternalLayerSuite):
    """torch.nn.GRU; documents and padding are its packed sequences' matter."""

    supports: ClassVar[frozenset[str]] = frozenset({"state", "autocast"})

    def make(self) -> nn.Module:
        return nn.GRU(self.width, self.width, batch_first=True)

    def step(self, layer: nn.Module, x: Tensor, state: State, tokens: Tokens) -> tuple[Tensor, State]:
        y, hidden = layer(x, None if state is None else state["hidden"].transpose(0, 1).contiguous())
        return y, {"hidden": hidden.transpose(0, 1)}


class TestGRUInBfloat16(TestGRU):
    """With weights and activations in bfloat16, as a layer has them that takes nothing wider."""

    supports: ClassVar[frozenset[str]] = frozenset({"state"})
    precision = torch.bfloat16

    def step(self, layer: nn.Module, x: Tensor, state: State, tokens: Tokens) -> tuple[Tensor, State]:
        assert x.dtype == torch.bfloat16
        y, after = super().step(layer, x, None if state is None else {"hidden": state["hidden"].to(x.dtype)}, tokens)
        return y, {"hidden": after["hidden"].float()}
