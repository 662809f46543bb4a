"""The stage, and what it minimises.

Letters: B batch rows, N tokens, V vocabulary.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from muse_core.contracts import Batch, Result, State
from muse_core.evaluation.cross_entropy import per_counted

from new_plugin.options import NewPluginOptions


class NormalisedScores:
    """Sum over counted tokens of −log p(next) + weight · (log Z)² (Chowdhery et al. 2022), and the layers' losses."""

    def __init__(self, weight: float):
        self.weight = weight

    def __call__(self, model: Any, batch: Batch, state: State) -> Result:
        output = model(batch.inputs, state, batch.tokens)
        scores = model.logits(output.hidden)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        log_z = scores.logsumexp(dim=-1)
        labels = batch.labels.masked_fill(~batch.loss_mask, 0)
        surprise = log_z - scores.gather(-1, labels[..., None])[..., 0]
        entropy = torch.where(batch.loss_mask, surprise, 0.0).sum()
        penalty = self.weight * torch.where(batch.loss_mask, log_z.square(), 0.0).sum()
        losses = {"cross_entropy": entropy, "normaliser": penalty} | per_counted(output.losses, batch)
        detached = {name: value.detach() for name, value in losses.items()}
        return Result(sum(losses.values()), detached, output.metrics, output.state)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


class NewPlugin:
    """An objective for the one loop, and which parameters it moves."""

    def __init__(self, options: NewPluginOptions, context: Any):
        self.options = options

    def objective(self, model: Any, data: Any) -> NormalisedScores:
        return NormalisedScores(self.options.weight)

    def trainable(self, name: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in self.options.keep)

    def finish(self, model: Any) -> None:
        """None: the stage keeps the architecture."""
