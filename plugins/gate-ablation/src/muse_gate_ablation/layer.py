"""The polarisation loss as a layer: it reads the signal ``gate`` and returns a loss.

Shapes: B batch, N tokens, D width, C gates of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.context import Context
from muse_gate_ablation.options import PolarisationOptions
from muse_gate_ablation.statistics import entropy, undecided


class Polarisation(nn.Module):
    """Loss λ(t) Σ_tokens mean_C(1 − |2g − 1|), with λ(t) = start^(1−t) end^t and t = accepted over planned steps.

    The update is zero. Measures: ``gate_entropy`` (bits), ``gate_load`` (mean openness), ``undecided`` (mean of
    1 − |2g − 1|), each a mean over tokens and C; ``gate_variance`` and ``gate_deviation`` of openness over both;
    ``weight`` (λ). Source: mathematics §9.
    """

    progress: Tensor
    fills_buffers = True

    def __init__(self, options: PolarisationOptions, context: Context):
        super().__init__()
        self.options = options
        # A buffer, so that a resumed run goes on with the weight that it stopped at.
        self.register_buffer("progress", torch.zeros(()))

    def weight(self) -> Tensor:
        """λ(t)."""
        start, end = self.options.start, self.options.end
        return start * (end / start) ** self.progress if start else torch.zeros_like(self.progress)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        gate = signals["gate"].to(torch.promote_types(signals["gate"].dtype, torch.float32))
        valid = torch.ones_like(gate[..., 0]) if tokens.valid is None else tokens.valid.to(gate.dtype)
        open_to = undecided(gate).mean(-1)
        weight = self.weight().to(gate.dtype)
        losses = {"polarisation": weight * (open_to * valid).sum()} if self.options.start else {}
        with torch.no_grad():
            share = valid / valid.sum().clamp_min(1.0)
            load = (gate.mean(-1) * share).sum()
            variance = ((gate - load).square().mean(-1) * share).sum()
            metrics = {
                "gate_entropy": (entropy(gate).mean(-1) * share).sum(),
                "gate_load": load,
                "gate_variance": variance,
                "gate_deviation": variance.sqrt(),
                "undecided": (open_to.detach() * share).sum(),
                "weight": weight.detach(),
            }
        return LayerOutput(torch.zeros_like(x), {}, {}, losses, metrics)

    def update_statistics(self, metrics: Mapping[str, float], progress: float) -> None:
        self.progress.fill_(progress)
