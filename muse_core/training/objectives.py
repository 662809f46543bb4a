"""The core's stages: next-token training, and evaluation of the weights as they are."""

from __future__ import annotations

from typing import Any

import torch

from muse_core.contracts import Batch, Result, State
from muse_core.evaluation.cross_entropy import cross_entropy, per_counted
from muse_core.evaluation.suites import evaluate
from muse_core.evaluation.suites.subject import Subject
from muse_core.training.stages import EvaluateOptions, TrainOptions


class NextToken:
    """Cross-entropy of the next token plus the layers' own losses. Stateless."""

    def __call__(self, model: Any, batch: Batch, state: State) -> Result:
        output = model(batch.inputs, state, batch.tokens)
        entropy = cross_entropy(model, output.hidden, batch)
        own = per_counted(output.losses, batch)
        total = entropy + sum(own.values(), start=torch.zeros_like(entropy))
        losses = {name: value.detach() for name, value in own.items()}
        return Result(total, {"cross_entropy": entropy.detach()} | losses, output.metrics, output.state)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


class Train:
    """Stage ``train``."""

    def __init__(self, options: TrainOptions, context: Any):
        pass

    def objective(self, model: Any, data: Any) -> NextToken:
        return NextToken()

    def trainable(self, name: str) -> bool:
        return True

    def finish(self, model: Any) -> None:
        return None


class Evaluate:
    """Stage ``evaluate``: the runner's held-out evaluation, and the suites that the recipe names."""

    def __init__(self, options: EvaluateOptions, context: Any):
        self._options = options
        self._setup = context

    def objective(self, model: Any, data: Any) -> None:
        return None

    def trainable(self, name: str) -> bool:
        return False

    def measured(self) -> dict[str, Any]:
        """``optional_contracts.Measures``: suite → rows, of the weights as they are."""
        options = self._options
        subject = Subject(
            setup=self._setup, tokens=options.tokens, samples=options.samples, seed=self._setup.recipe.seed
        )
        return evaluate(subject, list(options.suites), asked=False)

    def finish(self, model: Any) -> None:
        return None
