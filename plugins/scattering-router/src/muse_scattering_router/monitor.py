"""The routing monitor: collapse of experts, and agreement of choices between probes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from muse_core.contracts import Monitor, Routing, Verdict
from muse_core.training.monitor_context import MonitorContext
from muse_scattering_router.options import RoutingMonitorOptions

LOAD = re.compile(r"(?P<layer>.+)/load_(?P<expert>\d+)")


class RoutingMonitor(Monitor):
    """Follows every ``<layer>/load_<e>`` of a run's steps and warns once when an expert's average falls below the given
    part of an equal share, and again only after it has been above.

    Numbers of a probe: ``agreement/<router>``, the share of held-out tokens whose first choice is the one of the probe
    before; ``agreement``, its mean over routers.
    """

    def __init__(self, options: RoutingMonitorOptions, context: MonitorContext):
        super().__init__(options, context)
        self.context = context
        self.loads: dict[str, float] = {}
        self.collapsed: list[str] = []
        self.choices: dict[str, list[int]] = {}

    def judge(self, step: int, floats: Mapping[str, float]) -> Verdict:
        experts: dict[str, int] = {}
        for key, value in floats.items():
            found = LOAD.fullmatch(key)
            if found:
                experts[found["layer"]] = experts.get(found["layer"], 0) + 1
                before = self.loads.get(key, value)
                if np.isfinite(value):
                    self.loads[key] = self.options.decay * before + (1 - self.options.decay) * value
        fresh = []
        for key, load in self.loads.items():
            layer = key.rpartition("/")[0]
            if layer not in experts:
                continue
            if load * experts[layer] >= self.options.share:
                self.collapsed = [other for other in self.collapsed if other != key]
            elif key not in self.collapsed:
                self.collapsed.append(key)
                fresh.append(f"{key} is {load:.2%} of the choices, of which an equal share is {1 / experts[layer]:.2%}")
        if not fresh:
            return Verdict()
        return Verdict(reason=f"collapsed experts: {'; '.join(fresh)} - raise balance", monitor=self.name)

    def wants_probe(self, step: int, floats: Mapping[str, float]) -> bool:
        return step % self.options.every == 0

    def probe(self, model: Any) -> dict[str, float]:
        now = self.first_choices(model)
        agreements = {
            f"agreement/{name}": float(np.mean(np.equal(chosen, self.choices[name])))
            for name, chosen in now.items() if len(self.choices.get(name, ())) == len(chosen)
        }
        self.choices = now
        return agreements | ({"agreement": float(np.mean(list(agreements.values())))} if agreements else {})

    @torch.no_grad()
    def first_choices(self, model: Any) -> dict[str, list[int]]:
        """First choice of every token by router, for routers that every token reaches."""
        length = self.context.sequence_length
        text = np.asarray(self.context.validation()[: -(-self.options.tokens // length) * length])
        length = min(length, len(text))
        ids = torch.from_numpy(text[: len(text) // length * length].astype(np.int64)).view(-1, length)
        found: dict[str, list[int]] = {}

        def keep(name: str) -> Any:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                if isinstance(output, Routing) and output.expert.shape[:2] == ids.shape:
                    found[name] = output.expert[..., 0].flatten().tolist()

            return hook

        handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
        try:
            model(ids.to(next(model.parameters()).device))
        finally:
            for handle in handles:
                handle.remove()
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"loads": dict(self.loads), "collapsed": list(self.collapsed), "choices": dict(self.choices)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loads, self.collapsed = dict(state["loads"]), list(state["collapsed"])
        self.choices = dict(state["choices"])
