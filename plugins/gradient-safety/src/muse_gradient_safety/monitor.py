"""The gradient-safety monitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from muse_core.contracts import Action, Verdict
from muse_core.training.monitor_context import MonitorContext
from muse_gradient_safety.options import GradientSafetyOptions


class GradientSafety:
    """Counts parameters with non-finite gradients on the device and judges by the count once it is read.

    Numbers per step: ``tensors`` (parameters with a non-finite gradient), ``first_min`` (position of the first of them
    among all gradients) and, with policy replace, ``replaced`` (elements that were zeroed). A complex element is one
    element: it is finite when its modulus is, and is zeroed whole. Source: mathematics §9, reliability "Rollback".
    """

    def __init__(self, options: GradientSafetyOptions, context: MonitorContext):
        self.options = options
        self.name = context.name
        self.streak = 0
        self.names: tuple[str, ...] = ()

    @torch.no_grad()
    def measure(self, moment: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """At moment ``gradients``; policy replace changes the gradients in place. No synchronisation."""
        if moment != "gradients":
            return {}
        self.names = tuple(values)
        gradients = list(values.values())
        if not gradients:
            return {"tensors": torch.zeros(()), "first_min": torch.zeros(())}
        bad = nonfinite_tensors(gradients)
        measured = {"tensors": bad.sum(), "first_min": bad.int().argmax()}
        if self.options.policy == "replace":
            measured["replaced"] = replace_nonfinite(gradients)
        return measured

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

    def wants_probe(self, step: int, floats: Mapping[str, float]) -> bool:
        return False

    def probe(self, model: Any) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"streak": self.streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.streak = state["streak"]


def nonfinite_tensors(gradients: Sequence[Tensor]) -> Tensor:
    """(len(gradients),) bool: which hold a NaN or an infinity.

    0 · g is zero where g is finite and NaN elsewhere, so that no sum can overflow; on the CPU it takes a quarter of
    the time of ``isfinite`` or of the largest magnitude.
    """
    zeros = torch._foreach_mul([g.abs() if g.is_complex() else g for g in gradients], 0)
    return torch.stack([value.double() for value in torch._foreach_norm(zeros, 2)]).isnan()


def replace_nonfinite(gradients: Sequence[Tensor]) -> Tensor:
    """Zero every non-finite element in place; returns how many there were.

    A complex element goes as a whole: ``nan_to_num`` would keep its other part.
    """
    counts = []
    for gradient in gradients:
        if gradient.is_complex():
            bad = ~gradient.abs().isfinite()
            counts.append(bad.sum())
            gradient.masked_fill_(bad, 0)
        else:
            counts.append(torch.count_nonzero(gradient - gradient))
            gradient.nan_to_num_(0.0, 0.0, 0.0)
    return torch.stack(counts).sum()
