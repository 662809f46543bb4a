"""The model ``cvfp``.

Letters: B rows, N tokens, D width, V vocabulary. θ₁: the context network with c₀; θ₂: the token network with the head.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import ModelOutput, State, Tokens
from muse_cvfp.options import CvfpOptions

START = 0.2
"""Variance of W's entries times D at the start. The recurrence forgets its past at about 0.2; at 0.05 it hardly moves,
and from 0.5 on it is chaotic (docs/results/cvfp.md)."""


class Normalised(nn.Module):
    """(1 − m) v + m LN(v), without learned scale: a context's size can then not be learned away."""

    def __init__(self, width: int, mix: float):
        super().__init__()
        self.width, self.mix = width, mix

    def forward(self, v: Tensor) -> Tensor:
        normed = F.layer_norm(v, (self.width,))
        return normed if self.mix == 1.0 else (1.0 - self.mix) * v + self.mix * normed


class ContextBlock(nn.Module):
    """c' = LN(c + z_:D), x' = LN(x + z_D:) with z = ReLU(W[c; x] + b), W of shape (2 D, 2 D)."""

    def __init__(self, width: int, mix: float):
        super().__init__()
        self.width = width
        self.mixing = nn.Linear(2 * width, 2 * width)
        nn.init.normal_(self.mixing.weight, std=math.sqrt(START / width))
        nn.init.zeros_(self.mixing.bias)
        self.norm = Normalised(width, mix)

    def forward(self, c: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        z = F.relu(self.mixing(torch.cat((c, x), -1)))
        return self.norm(c + z[..., : self.width]), self.norm(x + z[..., self.width :])


class TokenBlock(nn.Module):
    """x' = LN(x + ReLU(W[c; x] + b)), W of shape (D, 2 D): a ``ContextBlock`` whose context is held fixed. The rows of
    W that would change the context are left out, as their result is discarded."""

    def __init__(self, width: int, mix: float):
        super().__init__()
        self.mixing = nn.Linear(2 * width, width)
        nn.init.normal_(self.mixing.weight, std=math.sqrt(1.0 / width))
        nn.init.zeros_(self.mixing.bias)
        self.norm = Normalised(width, mix)

    def forward(self, c: Tensor, x: Tensor) -> Tensor:
        return self.norm(x + F.relu(self.mixing(torch.cat((c, x), -1))))


class Cvfp(nn.Module):
    """C_i = f_θ₁(C_{i−1}, x_i) token by token, C_{−1} = c₀ in every document; hidden = [C ; token output].

    A token embedding enters as x = LN(E), so that embeddings of any source have one size. State: the last context,
    (B, D). Token by token, in pieces and whole the same recurrence runs, so they agree.
    """

    def __init__(self, options: CvfpOptions, context: Any):
        super().__init__()
        width, mix = options.width, options.layernorm_mix
        self.width = width
        self.vocabulary_size: int = context.vocabulary_size
        context.check_size(4 * (options.depth * 6 * width**2 + 3 * width * context.vocabulary_size))
        with context.seeded("embedding"):
            self.embedding = nn.Embedding(context.vocabulary_size, width)
            nn.init.normal_(self.embedding.weight)
        self.start = nn.Parameter(torch.zeros(width))
        self.context_blocks = nn.ModuleList()
        self.token_blocks = nn.ModuleList()
        for index in range(options.depth):
            with context.seeded(f"context_blocks.{index}"):
                self.context_blocks.append(ContextBlock(width, mix))
            with context.seeded(f"token_blocks.{index}"):
                self.token_blocks.append(TokenBlock(width, mix))
        with context.seeded("head"):
            self.head = nn.Linear(2 * width, context.vocabulary_size)
            nn.init.normal_(self.head.weight, std=1 / math.sqrt(2 * width) / 4)
            nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor, state: State = None, tokens: Tokens | None = None) -> ModelOutput:
        """``contracts.Model``."""
        x = self.embedded(inputs)
        contexts = self.contexts(x, None if state is None else state["context"], tokens)
        return ModelOutput(self.hidden(contexts, x), {"context": contexts[:, -1]}, {}, {})

    def embedded(self, inputs: Tensor) -> Tensor:
        """Ids (…) or embeddings (…, D) → x (…, D)."""
        return F.layer_norm(inputs if inputs.is_floating_point() else self.embedding(inputs), (self.width,))

    def next_context(self, c: Tensor, x: Tensor) -> Tensor:
        """f_θ₁ for any leading shape: contexts (…, D) and inputs (…, D) → the contexts after them."""
        for block in self.context_blocks:
            c, x = block(c, x)
        return c

    def contexts(self, x: Tensor, first: Tensor | None = None, tokens: Tokens | None = None) -> Tensor:
        """The recurrence over x (B, N, D): (B, N, D). ``first`` (B, D) is the context before token 0, by default c₀."""
        c = self.start.expand(x.shape[0], -1) if first is None else first
        resets, valid = (None, None) if tokens is None else (tokens.starts(), tokens.valid)
        found = []
        for token in range(x.shape[1]):
            if resets is not None:
                c = torch.where(resets[:, token, None], self.start, c)
            following = self.next_context(c, x[:, token])
            c = following if valid is None else torch.where(valid[:, token, None], following, c)
            found.append(c)
        return torch.stack(found, 1)

    def hidden(self, contexts: Tensor, x: Tensor) -> Tensor:
        """[C ; token output] (…, 2 D) for contexts (…, D), held fixed through the blocks, and inputs (…, D)."""
        output = x
        for block in self.token_blocks:
            output = block(contexts, output)
        return torch.cat((contexts, output), -1)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, N) → token embeddings (B, N, D)."""
        embedded: Tensor = self.embedding(ids)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, N, 2 D) → scores (B, N, V)."""
        scores: Tensor = self.head(hidden)
        return scores

    def checks(self, setup: Any, run: Path) -> dict[str, dict[str, float | str]]:
        """The checks of the fixed point in ``muse diagnose``; see ``muse_cvfp.checks``."""
        from muse_cvfp.checks import checks

        return checks(self, setup, run)
