"""A neural n-gram model (Bengio et al. 2003).

Letters: B batch rows, N tokens, D width, S span.
"""

from __future__ import annotations

import torch
from muse_core.contracts import ModelOutput, State, Tokens
from muse_core.building import ModelContext
from torch import Tensor, nn
from torch.nn import functional as F

from new_plugin.options import NewPluginOptions


class NewPlugin(nn.Module):
    """hidden_t = norm(x_t + W gelu(V (x_t, …, x_{t−S+1}))) over the tokens of a document. State: ``inputs``
    (B, S − 1, D), the last embeddings, zero before the latest document."""

    def __init__(self, options: NewPluginOptions, context: ModelContext):
        super().__init__()
        self.vocabulary_size = context.vocabulary_size
        self.span = options.span
        with context.seeded("new-plugin"):
            self.embedding = nn.Embedding(context.vocabulary_size, options.width)
            self.input = nn.Linear(options.span * options.width, options.hidden)
            self.output = nn.Linear(options.hidden, options.width, bias=False)
            nn.init.normal_(self.embedding.weight, std=0.02)
        self.norm = nn.RMSNorm(options.width, eps=1e-6)

    def forward(self, inputs: Tensor, state: State = None, tokens: Tokens | None = None) -> ModelOutput:
        """``inputs``: ids (B, N) or embeddings (B, N, D). ``tokens`` None: one document in every row."""
        x = inputs if inputs.is_floating_point() else self.embed(inputs)
        if tokens is None:
            tokens = Tokens(torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1))
        memory = self.span - 1
        before = x.new_zeros(x.shape[0], memory, x.shape[2]) if state is None else state["inputs"].to(x.dtype)
        stream = torch.cat([before, x], dim=1)
        document = documents(tokens, memory)
        window = torch.cat([earlier(stream, document, lag, self.span) for lag in range(self.span)], dim=-1)
        hidden = self.norm(x + self.output(F.gelu(self.input(window))))
        return ModelOutput(hidden, {"inputs": last_inputs(stream, document, memory, tokens.valid)}, {}, {})

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, N) → embeddings (B, N, D)."""
        return self.embedding(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, N, D) → scores (B, N, vocabulary)."""
        return hidden @ self.embedding.weight.T


def earlier(stream: Tensor, document: Tensor, lag: int, span: int) -> Tensor:
    """(B, N, D): the inputs ``lag`` tokens before each token, zero where those belong to another document."""
    start, stop = span - 1 - lag, stream.shape[1] - lag
    same = document[:, start:stop] == document[:, span - 1 :]
    return torch.where(same[..., None], stream[:, start:stop], 0.0)


def documents(tokens: Tokens, memory: int) -> Tensor:
    """(B, S − 1 + N): which document an input belongs to, counted from that of the carried ones, 0."""
    if tokens.resets is None:
        return nn.functional.pad(torch.zeros_like(tokens.positions), (memory, 0))
    return nn.functional.pad(tokens.resets.long().cumsum(dim=1), (memory, 0))


def last_inputs(stream: Tensor, document: Tensor, memory: int, valid: Tensor | None) -> Tensor:
    """(B, S − 1, D), at least fp32: the inputs up to each row's last valid token, zero before its latest document."""
    length = stream.shape[1] - memory
    seen = torch.full_like(document[:, :1], length) if valid is None else valid.sum(dim=1, keepdim=True)
    index = seen + torch.arange(memory, device=stream.device)
    kept, owner = stream.take_along_dim(index[..., None], dim=1), document.take_along_dim(index, dim=1)
    kept = torch.where((owner == owner[:, -1:])[..., None], kept, 0.0)
    return kept.to(torch.promote_types(kept.dtype, torch.float32))
