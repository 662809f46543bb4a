"""The monitor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from muse_core.contracts import Action, Monitor, Verdict
from muse_core.training.monitor_context import MonitorContext
from torch import Tensor

from new_plugin.options import NewPluginOptions


class NewPlugin(Monitor):
    """Number per step: ``largest_max``, the largest magnitude of a gradient entry. What a judge remembers is in
    ``state_dict``, so that a resumed run judges alike."""

    def __init__(self, options: NewPluginOptions, context: MonitorContext):
        super().__init__(options, context)
        self.usual: float | None = None

    @torch.no_grad()
    def measure(self, moment: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """On the device, without synchronisation; moments that it does not know are passed over."""
        if moment != "gradients":
            return {}
        largest = [gradient.abs().max().float() for gradient in values.values()]
        return {"largest_max": torch.stack(largest).max() if largest else torch.zeros(())}

    def judge(self, step: int, floats: Mapping[str, float]) -> Verdict:
        """A function of reduced numbers and of what was judged before, so that all ranks agree."""
        largest = floats[f"{self.name}/largest_max"]
        if not math.isfinite(largest):
            return Verdict(Action.SKIP, f"a gradient entry is {largest}", self.name, step)
        usual = largest if self.usual is None else self.usual
        limit = self.options.factor * usual
        # What is too much counts as the limit, so that a run whose gradients stay larger goes on after a while.
        self.usual = self.options.memory * usual + (1 - self.options.memory) * min(largest, limit)
        if largest <= limit:
            return Verdict()
        reason = f"a gradient entry of {largest:.3g} is over {self.options.factor:g} times the usual {usual:.3g}"
        return Verdict(Action.SKIP, reason, self.name, step)

    def state_dict(self) -> dict[str, Any]:
        return {"usual": self.usual}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.usual = state["usual"]
