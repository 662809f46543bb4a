"""A causal convolution of every channel.

Letters: B batch rows, N tokens, D width, S span.
"""

from __future__ import annotations

import torch
from muse_core.contracts import State, LayerOutput, Tokens
from muse_core.model.context import Context
from torch import Tensor, nn

from new_plugin.options import NewPluginOptions


class NewPlugin(nn.Module):
    """update_t = P Σ_lag tap_lag ⊙ x_{t−lag} over the tokens of a document. State: ``inputs`` (B, S − 1, D), the last
    ones, zero before the latest document."""

    def __init__(self, options: NewPluginOptions, context: Context):
        super().__init__()
        width, generator = context.width, context.generator
        self.span = options.span
        # Vectors, not one matrix: Muon and weight decay are for matrices that mix channels.
        self.taps = nn.ParameterList(
            torch.randn(width, generator=generator) * options.span**-0.5 for _ in range(options.span)
        )
        self.output = nn.Linear(width, width, bias=False)
        # As many updates as there are blocks add up in the stream.
        nn.init.normal_(self.output.weight, std=(2 * context.depth * width) ** -0.5, generator=generator)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        memory = self.span - 1
        before = x.new_zeros(x.shape[0], memory, x.shape[2]) if state is None else state["inputs"].to(x.dtype)
        stream = torch.cat([before, x], dim=1)
        document = documents(tokens, memory)
        mixed = sum(tap * earlier(stream, document, lag, self.span) for lag, tap in enumerate(self.taps))
        kept = last_inputs(stream, document, memory, tokens.valid)
        return LayerOutput(self.output(mixed.to(x.dtype)), {"inputs": kept})


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
