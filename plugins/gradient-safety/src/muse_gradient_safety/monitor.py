"""The gradient-safety monitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from muse_core.contracts import Action, Monitor, Verdict
from muse_core.training.monitor_context import MonitorContext
from muse_gradient_safety.options import GradientSafetyOptions


class GradientSafety(Monitor):
    """Counts parameters with non-finite gradients on the device and judges by the count once it is read.

    Numbers per step: ``tensors`` (parameters with a non-finite gradient), ``first_min`` (position of the first of them
    among all gradients, or their number), ``largest_max`` (largest 2-norm of one parameter's gradient) with
    ``largest_at_max`` (its position) and, with policy replace, ``replaced`` (elements that were zeroed). A complex
    element is one element: it is finite when its modulus is, and is zeroed whole. Skip and halt read the norms that the
    loop takes anyway; replace takes two passes of its own. Source: mathematics §9, reliability "Rollback".
    """

    def __init__(self, options: GradientSafetyOptions, context: MonitorContext):
        super().__init__(options, context)
        self.streak = 0
        self.names: tuple[str, ...] = ()

    @torch.no_grad()
    def measure(self, moment: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """At moment ``gradients`` policy replace changes them in place. No synchronisation."""
        if moment == "gradients" and self.options.policy == "replace":
            counts = replace_nonfinite(list(values.values()))
            return damaged(counts > 0) | {"replaced": counts.sum()}
        if moment != "norms":
            return {}
        self.names, norms = values["names"], values["norms"]
        if not self.names:
            return damaged(norms > 0)
        largest = {"largest_max": norms.amax(), "largest_at_max": norms.argmax()}
        return largest if self.options.policy == "replace" else damaged(~norms.isfinite()) | largest

    def judge(self, step: int, floats: Mapping[str, float]) -> Verdict:
        tensors = int(floats[f"{self.name}/tensors"])
        if not tensors:
            self.streak = 0
            return Verdict()
        self.streak += 1
        reason = self._reason(tensors, floats)
        if self.options.policy == "halt":
            return Verdict(Action.HALT, reason, self.name, step)
        if self.streak >= self.options.patience:
            onset = step - self.streak + 1
            return Verdict(Action.ROLLBACK, f"{reason}, {self.streak} steps in a row", self.name, onset)
        action = Action.SKIP if self.options.policy == "skip" else Action.CONTINUE
        return Verdict(action, reason, self.name, step)

    def _reason(self, tensors: int, floats: Mapping[str, float]) -> str:
        first = self.names[int(floats[f"{self.name}/first_min"])]
        others = f" and {tensors - 1} more" if tensors > 1 else ""
        replaced = floats.get(f"{self.name}/replaced")
        done = "" if replaced is None else f", {replaced:.0f} elements zeroed"
        return f"non-finite gradient of {first}{others}{done}"

    def state_dict(self) -> dict[str, Any]:
        return {"streak": self.streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.streak = state["streak"]


def damaged(bad: Tensor) -> dict[str, Tensor]:
    """How many are ``bad`` (P,), and the first of them; P where none is, so that of several processes that have parts
    of the gradients the least is of one that is damaged."""
    first = torch.where(bad.any(), bad.int().argmax(), len(bad)) if len(bad) else bad.new_zeros((), dtype=torch.int)
    return {"tensors": bad.sum(), "first_min": first}


def replace_nonfinite(gradients: Sequence[Tensor]) -> Tensor:
    """Zero every non-finite element in place; returns (len(gradients),) how many there were in each.

    A complex element goes as a whole: ``nan_to_num`` would keep its other part.
    """
    counts = []
    for gradient in gradients:
        if gradient.is_complex():
            bad = ~gradient.abs().isfinite()
            counts.append(bad.sum())
            gradient.masked_fill_(bad, 0)
        else:
            # x − x is NaN where x is not finite: half the time of ``isfinite`` on a CPU.
            counts.append(torch.count_nonzero(gradient - gradient))
            gradient.nan_to_num_(0.0, 0.0, 0.0)
    return torch.stack(counts) if counts else torch.zeros(0, dtype=torch.int64)
