"""The monitor ``rollback``."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from muse_core.contracts import Action, Monitor, Verdict
from muse_core.data.batches import to_device
from muse_core.evaluation.cross_entropy import cross_entropy
from muse_core.training.monitor_context import MonitorContext
from muse_rollback.ladder import remedy
from muse_rollback.machine import Machine
from muse_rollback.options import RollbackOptions

STREAK = 3
"""Consecutive non-finite steps at which the core rolls back; this monitor then says how."""


class Rollback(Monitor):
    """Screens the training loss, asks the canary, and says what a rollback does.

    Numbers of an evaluation: ``canary`` (nats per token), ``reference`` and ``bound`` (nats; where there are enough
    values), ``seconds`` (what it cost). A checkpoint is certified when the canary passed at that very step. Source:
    reliability "Rollback".
    """

    def __init__(self, options: RollbackOptions, context: MonitorContext):
        super().__init__(options, context)
        self.context = context
        self.machine = Machine(
            options, warmup_steps=context.warmup_steps, checkpoint_every=context.checkpoint_every
        )
        self.streak = 0
        self._asked_at = 0

    def judge(self, step: int, floats: Mapping[str, float]) -> Verdict:
        healthy = math.isfinite(floats["total"]) and not floats["gradient_nonfinite"]
        self.streak = 0 if healthy else self.streak + 1
        damage = self.machine.damage
        if damage is None and (floats["state_nonfinite"] or self.streak >= STREAK):
            damage = "what is not finite is not cured by skipping", max(step - max(self.streak, 1), 0)
        if damage is not None:
            reason, onset = damage
            action = remedy(int(floats["rollbacks"]), self.options.margin)
            return Verdict(Action.ROLLBACK, reason, self.name, onset, action)
        if healthy:
            self.machine.see(step, floats["loss"])
        return Verdict()

    def wants_probe(self, step: int, floats: Mapping[str, float]) -> bool:
        self._asked_at = step
        return self.machine.asks(step)

    def probe(self, model: Any) -> dict[str, float]:
        started = time.perf_counter()
        value = self.canary(model)
        known = {}
        if self.machine.canary.ready:
            known = {"reference": self.machine.canary.reference, "bound": self.machine.canary.bound}
        self.machine.answer(self._asked_at, value)
        return {"canary": value} | known | {"seconds": time.perf_counter() - started}

    def canary(self, model: Any) -> float:
        """Loss on the canary's sequences in nats per token; the model is in evaluation mode."""
        device = next(model.parameters()).device
        total, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
        for batch in self.context.canary(self.options.sequences):
            there = to_device(batch, device)
            output = model(there.inputs, None, there.tokens)
            total += cross_entropy(model, output.hidden, there).double()
            tokens += int(batch.loss_mask.sum())
        return float(total / max(tokens, 1))

    def veto_certification(self, step: int) -> str | None:
        return self.machine.veto_certification(step)

    def state_dict(self) -> dict[str, Any]:
        return self.machine.state_dict() | {"streak": self.streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.machine.load_state_dict(state)
        self.streak = state["streak"]
