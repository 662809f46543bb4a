"""Leaky averages as one masked product over tokens.

Letters: B batch rows, N tokens, D width, H heads, M = D / H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.context import Context
from muse_leaky_average.options import LeakyAverageOptions


class Rates(nn.Module):
    """k of every head in (0, 1). Held by a submodule named ``dynamics``: it stays fp32 and has no weight decay."""

    def __init__(self, heads: int, spans: tuple[float, float]):
        super().__init__()
        span = torch.logspace(*torch.tensor(spans).log10().tolist(), heads)
        self.logit = nn.Parameter((span - 1).log())

    def forward(self) -> Tensor:
        """(H,)."""
        return self.logit.sigmoid()


class LeakyAverage(nn.Module):
    """Memory layer ``leaky-average``. State: ``average`` (B, H, M) after the last token."""

    def __init__(self, options: LeakyAverageOptions, context: Context):
        super().__init__()
        if context.width % options.heads:
            raise ValueError(f"heads = {options.heads} does not divide the width {context.width}")
        self.heads = options.heads
        self.dynamics = Rates(options.heads, options.spans)
        self.value = nn.Linear(context.width, context.width, bias=False)
        self.output = nn.Linear(context.width, context.width, bias=False)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        values = self.value(x).unflatten(-1, (self.heads, -1))
        precise = torch.promote_types(x.dtype, torch.float32)
        start = values.new_zeros(values[:, 0].shape, dtype=precise) if state is None else state["average"]
        with torch.autocast(x.device.type, enabled=False):
            averages = leaky_averages(values.to(precise), self.dynamics().to(precise), start, tokens.resets)
        last = averages[:, -1] if tokens.valid is None else last_valid(averages, start, tokens.valid)
        return LayerOutput(self.output(averages.flatten(-2).to(x.dtype)), {"average": last})


def leaky_averages(values: Tensor, keep: Tensor, start: Tensor, resets: Tensor | None) -> Tensor:
    """a_t = k a_{t−1} + (1 − k) v_t for values (B, N, H, M), keep (H,), start (B, H, M); zero before a reset."""
    length = values.shape[1]
    age = torch.arange(length, device=values.device)
    lag = (age[:, None] - age).clamp(min=0)
    weights = (1 - keep)[:, None, None] * keep[:, None, None] ** lag
    seen = (age[:, None] >= age).expand(values.shape[0], -1, -1)
    carried = keep[:, None] ** (age + 1)
    carried = carried.expand(values.shape[0], -1, -1)
    if resets is not None:
        document = resets.long().cumsum(dim=1)
        seen = seen & (document[:, :, None] == document[:, None, :])
        carried = carried * (document == 0)[:, None, :]
    written = torch.einsum("bhij,bjhm->bihm", weights * seen[:, None], values)
    return written + torch.einsum("bhi,bhm->bihm", carried, start)


def last_valid(averages: Tensor, start: Tensor, valid: Tensor) -> Tensor:
    """(B, H, M): the average after each row's last valid token, ``start`` for a row without one."""
    joined = torch.cat([start[:, None], averages], dim=1)
    return joined[torch.arange(len(joined), device=joined.device), valid.sum(dim=1)]
