"""What monitors share that look at the model between steps, at a cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from muse_core.contracts import Action, Verdict
from muse_core.training.probe_budget import ProbeBudget


class BudgetedProbe:
    """A monitor that probes every so many steps while that stays within a share of the run's wall clock.

    A subclass gives ``probe``, spends within ``self.probe_budget.spending()``, and writes a sentence into ``failure`` when
    what it found is bad; the next ``judge`` reports it once, as "warn" or "halt" asks. Number of a step:
    ``share_max``, the share if one more ran now; it is reduced over ranks, so that all decide alike.
    """

    def __init__(
        self, name: str, *, every: int, budget: float, on_failure: Literal["warn", "halt"], passes: float
    ):
        """``passes``: how many training batches the first probe reads."""
        self.name = name
        self.every = every
        self.budget = budget
        self.on_failure = on_failure
        self.passes = passes
        self.probe_budget = ProbeBudget()
        self.step = 0
        self.failure = ""

    def measure(self, moment: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
        if moment != "gradients":
            return {}
        self.probe_budget.step()
        return {"share_max": torch.tensor(self.probe_budget.share_with_next(self.passes), dtype=torch.float64)}

    def judge(self, step: int, floats: Mapping[str, float]) -> Verdict:
        self.step = step
        if not self.failure:
            return Verdict()
        failure, self.failure = self.failure, ""
        return Verdict(Action.HALT if self.on_failure == "halt" else Action.CONTINUE, failure, self.name, step)

    def wants_probe(self, step: int, floats: Mapping[str, float]) -> bool:
        return step % self.every == 0 and floats[f"{self.name}/share_max"] <= self.budget

    def costs(self) -> dict[str, float]:
        """``seconds`` of the last probe and ``share`` of the run's time that probes have taken."""
        return {"seconds": self.probe_budget.cost, "share": self.probe_budget.share}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what the wall clock decides must not enter the state of a run."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
