"""The optimizer: which parameters it takes, and its update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from muse_core.contracts import TrainedParameter
from muse_core.training.rule_context import OptimizerContext
from torch import Tensor

from new_plugin.options import NewPluginOptions


class NewPlugin:
    """Every parameter in one optimiser, in groups with and without weight decay."""

    def __init__(self, options: NewPluginOptions, context: OptimizerContext):
        self.options, self.context = options, context

    def build(self, parameters: Mapping[str, TrainedParameter]) -> list[torch.optim.Optimizer]:
        """The ``lr`` of a group is its peak rate; the core follows the schedule with it."""
        context = self.context
        groups: list[dict[str, Any]] = []
        for decayed in (True, False):
            chosen = [one.tensor for one in parameters.values() if context.decays(one.role) is decayed]
            if chosen:
                groups.append({"params": chosen, "weight_decay": context.weight_decay if decayed else 0.0})
        return [Lion(groups, lr=context.learning_rate, betas=(self.options.beta1, self.options.beta2))]

    def kept(self, optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
        """The running mean, of the parameter's shape: all that a resumed run needs."""
        return {"mean": parameter}


class Lion(torch.optim.Optimizer):
    """W ← (1 − lr·decay) W − lr·sign(β₁ m + (1 − β₁) g), then m ← β₂ m + (1 − β₂) g."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]):
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                direction = torch.lerp(parameter.grad, state["mean"], first).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"])
                state["mean"].lerp_(parameter.grad, 1 - second)
