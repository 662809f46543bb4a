"""Starting values that depend on nothing but the context's generator."""

from __future__ import annotations

import torch
from torch import nn


def linear(inputs: int, outputs: int, *, generator: torch.Generator, std: float | None = None) -> nn.Linear:
    """A map without bias whose weight (outputs, inputs) is normal with deviation ``std``, by default 1/√inputs, which
    keeps the root mean square of what passes through. ``nn.Linear`` would draw from the global generator."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False)
    with torch.no_grad():
        layer.weight.normal_(std=inputs**-0.5 if std is None else std, generator=generator)
    return layer


def residual_output(inputs: int, outputs: int, *, depth: int, generator: torch.Generator) -> nn.Linear:
    """A map whose result is added to the residual stream of ``depth`` blocks: narrower by √(2 depth), so that the
    stream's variance does not grow with depth at the start (GPT-2, Radford et al. 2019)."""
    return linear(inputs, outputs, generator=generator, std=(inputs * 2 * depth) ** -0.5)
