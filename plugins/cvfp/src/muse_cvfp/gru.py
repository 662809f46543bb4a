"""The control ``gru``: the usual trained recurrence in place of contexts by a fixed point.

Letters: B rows, N tokens, W width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from muse_core.contracts import ModelOutput, State, Tokens
from muse_cvfp.options import GruOptions


class Gru(nn.Module):
    """h_i = GRU(E_i, h_{i−1}) (Cho et al. 2014), h = 0 where a document starts; logits = Head h. Trained through its
    whole unrolling over a window."""

    def __init__(self, options: GruOptions, context: Any):
        super().__init__()
        self.vocabulary_size: int = context.vocabulary_size
        width = options.width
        with context.seeded("embedding"):
            self.embedding = nn.Embedding(context.vocabulary_size, width)
        with context.seeded("cell"):
            self.cell = nn.GRUCell(width, width)
        with context.seeded("head"):
            self.head = nn.Linear(width, context.vocabulary_size)
            nn.init.normal_(self.head.weight, std=1 / math.sqrt(width) / 4)
            nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor, state: State = None, tokens: Tokens | None = None) -> ModelOutput:
        """``contracts.Model``. State: h (B, W)."""
        x = inputs if inputs.is_floating_point() else self.embedding(inputs)
        h = x.new_zeros(x.shape[0], x.shape[2]) if state is None else state["h"]
        resets, valid = (None, None) if tokens is None else (tokens.starts(), tokens.valid)
        found = []
        for token in range(x.shape[1]):
            if resets is not None:
                h = h.masked_fill(resets[:, token, None], 0.0)
            following = self.cell(x[:, token], h).to(h.dtype)
            if valid is not None:
                following = torch.where(valid[:, token, None], following, h)
            h = following
            found.append(h)
        return ModelOutput(torch.stack(found, 1), {"h": h}, {}, {})

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, N) → token embeddings (B, N, D)."""
        embedded: Tensor = self.embedding(ids)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, N, W) → scores (B, N, V)."""
        scores: Tensor = self.head(hidden)
        return scores
