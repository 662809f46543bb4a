"""Adds numbers up on the device over micro-batches and reads them to the host once a step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from muse_core.contracts import Result

SUM, MIN, MAX, MEAN = "_sum", "_min", "_max", ""


def reduction_of(name: str) -> str:
    """How a measure is reduced over micro-batches: by its suffix, otherwise the mean weighted by tokens."""
    return next((suffix for suffix in (SUM, MIN, MAX) if name.endswith(suffix)), MEAN)


class MetricAccumulator:
    """Accumulates the results of one step. All values become float64 in one tensor; ``read`` is the only
    synchronisation with the device."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.tokens: Tensor | None = None

    def add_result(self, result: Result, num_targets: Tensor) -> None:
        """A micro-batch: losses are sums, metrics reduced by suffix. ``num_targets`` tokens have a target."""
        num_targets = num_targets.double()
        self.tokens = num_targets if self.tokens is None else self.tokens + num_targets
        self._sum("total", result.total.detach())
        for name, value in result.losses.items():
            self._sum(name, value)
        for name, value in result.metrics.items():
            self._measure(name, value.detach().double(), num_targets)

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Values of the whole step: they stand as they are."""
        for name, value in values.items():
            self.values["=" + name] = value.detach().double()

    def read(self) -> dict[str, float]:
        """Every number on the host. ``loss`` and each loss are nats per counted token."""
        assert self.tokens is not None, "no micro-batch was added"
        names = list(self.values)
        device = self.tokens.device
        packed = torch.stack([self.tokens, *(self.values[name].to(device).reshape(()) for name in names)]).tolist()
        tokens = packed[0]
        read: dict[str, float] = {"tokens": tokens}
        for name, value in zip(names, packed[1:]):
            kind, key = name[0], name[1:]
            read[key] = value / max(tokens, 1.0) if kind == "/" else value
        read["loss"] = read.get("cross_entropy", read["total"])
        return read

    def _sum(self, name: str, value: Tensor) -> None:
        key = "/" + name
        value = value.double()
        self.values[key] = self.values[key] + value if key in self.values else value

    def _measure(self, name: str, value: Tensor, num_targets: Tensor) -> None:
        reduction = reduction_of(name)
        if reduction == MEAN:
            self._sum(name, value * num_targets)
            return
        key = "=" + name
        if key not in self.values:
            self.values[key] = value
        elif reduction == SUM:
            self.values[key] = self.values[key] + value
        elif reduction == MIN:
            self.values[key] = torch.minimum(self.values[key], value)
        else:
            self.values[key] = torch.maximum(self.values[key], value)
