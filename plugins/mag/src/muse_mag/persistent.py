"""Persistent memory: learned keys and values of every head, attended to as a layer or held as fast weights.

Letters: B batch rows, N tokens, D width, H heads, K key size, M value size, P persistent keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.attention import Always
from muse_core.model.context import Context
from muse_core.model.projections import projection
from muse_mag.options import PersistentMemoryOptions


class Moments(NamedTuple):
    """What persistent keys and values are as fast weights."""

    keys: Tensor
    """M_p = Σ k kᵀ, (H, K, K)."""
    norm: Tensor
    """n_p = Σ ‖k‖², (H,)."""
    values: Tensor
    """W_p = Σ k vᵀ, (H, K, M)."""


class PersistentMemory(nn.Module):
    """P learned keys and values of H heads. ``scale``: standard deviation of a key's entries at the start."""

    def __init__(
        self, count: int, heads: int, key_size: int, value_size: int, generator: torch.Generator, scale: float = 1.0
    ):
        super().__init__()
        self.count, self.heads = count, heads
        # Embedding tables, so that optimisers and initializers treat them as the table of vectors that they are.
        self.key = nn.Embedding(count, heads * key_size)
        self.value = nn.Embedding(count, heads * value_size)
        nn.init.normal_(self.key.weight, std=scale, generator=generator)
        nn.init.normal_(self.value.weight, generator=generator)

    def tokens(self) -> Always:
        """Keys (P, H, K) and values (P, H, M)."""
        return Always(*(table.weight.view(self.count, self.heads, -1) for table in (self.key, self.value)))

    def moments(self) -> Moments:
        """Computed anew at every call, so that gradients reach keys and values; in fp32 at least."""
        key, value = self.tokens()
        with torch.autocast(key.device.type, enabled=False):
            return Moments(
                torch.einsum("phk,phl->hkl", key, key),
                key.square().sum((0, 2)),
                torch.einsum("phk,phm->hkm", key, value),
            )


class PersistentAttention(nn.Module):
    """update_t = P Σ_p softmax_p(q_t·k_p/√K) v_p over learned k_p and v_p (Sukhbaatar et al., arXiv:1907.01470). Each
    token by itself; the state is empty."""

    def __init__(self, options: PersistentMemoryOptions, context: Context):
        super().__init__()
        width, generator = context.width, context.generator
        if width % options.heads:
            raise ValueError(f"heads = {options.heads} does not divide the width {width}")
        self.heads, size = options.heads, width // options.heads
        self.query = projection(width, width, generator)
        self.memory = PersistentMemory(options.persistent, options.heads, size, size, generator)
        self.output = projection(width, width, generator, gain=(2 * context.depth) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).flatten(0, 1).transpose(0, 1)
        key, value = (side.to(query.dtype).transpose(0, 1) for side in self.memory.tokens())
        mixed = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
        return LayerOutput(self.output(mixed.transpose(0, 1).reshape(x.shape)), {})
