"""Fast weights, computed by the kernel that the recipe chooses.

Letters: B batch rows, N tokens, D width, H heads, K = D / H.
"""

from __future__ import annotations

import torch
from muse_core.contracts import State, LayerOutput, Tokens
from muse_core.model.context import Context
from torch import Tensor, nn
from torch.nn import functional as F

from new_plugin.options import NewPluginOptions

SPANS = (8.0, 256.0)
"""Tokens that the first and the last head remember at the start; those between are log-spaced."""


class NewPlugin(nn.Module):
    """update_t = P W_tᵀ q_t with W_t = e^{g_t} (I − β_t k_t k_tᵀ) W_{t−1} + β_t k_t v_tᵀ; the bracket is I for the rule
    hebbian. Keys and queries have length 1. State: ``weights`` (B, H, K, K). Measure: ``energy``, the mean ‖W‖²."""

    def __init__(self, options: NewPluginOptions, context: Context):
        super().__init__()
        width, generator = context.width, context.generator
        if width % options.heads:
            raise ValueError(f"heads = {options.heads} does not divide the width {width}")
        self.heads, self.rule = options.heads, options.rule
        size = width // options.heads
        self.kernel = context.kernels.bind(
            "fast_weights", sizes={"key": size, "value": size}, needs=("gradient", "resets")
        )
        self.input = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.dynamics = Dynamics(width, options.heads, generator)
        nn.init.normal_(self.input.weight, std=width**-0.5, generator=generator)
        nn.init.normal_(self.output.weight, std=(2 * context.depth * width) ** -0.5, generator=generator)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        query, key, value = self.input(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        log_decay, rate = self.dynamics(x)
        if tokens.valid is not None:  # padding neither forgets nor writes
            log_decay = torch.where(tokens.valid[..., None], log_decay, 0.0)
            rate = torch.where(tokens.valid[..., None], rate, 0.0)
        before = None if state is None else state["weights"]
        read, weights = self.kernel(
            unit(query), unit(key), value, log_decay, rate, rule=self.rule, initial=before, resets=tokens.starts()
        )
        energy = weights.detach().square().sum((-1, -2)).mean()
        return LayerOutput(self.output(read.flatten(2).to(x.dtype)), {"weights": weights}, metrics={"energy": energy})


class Dynamics(nn.Module):
    """log-decay g ≤ 0 and rate β in (0, 1) per head and token, in fp32 at least: a submodule named ``dynamics`` stays
    fp32 and has no weight decay."""

    def __init__(self, width: int, heads: int, generator: torch.Generator):
        super().__init__()
        self.keep, self.rate = nn.Linear(width, heads), nn.Linear(width, heads)
        for linear in (self.keep, self.rate):
            nn.init.normal_(linear.weight, std=0.5 * width**-0.5, generator=generator)
            nn.init.zeros_(linear.bias)
        short, long = torch.tensor(SPANS).log10().tolist()
        with torch.no_grad():  # σ(c) = 1 − 1/span
            self.keep.bias.copy_((torch.logspace(short, long, heads) - 1).log())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, N, D) → g and β, each (B, N, H)."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            return F.logsigmoid(self.keep(x)), torch.sigmoid(self.rate(x))


def unit(x: Tensor) -> Tensor:
    """x (…, K) over its length, computed in fp32 at least."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1, eps=1e-6).to(x.dtype)
