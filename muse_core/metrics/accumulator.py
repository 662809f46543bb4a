"""Adds numbers up on the device over micro-batches and reads them to the host once a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from muse_core.contracts import Result

SUM, MIN, MAX, MEAN = "_sum", "_min", "_max", ""
COMBINED = {SUM: torch.add, MIN: torch.minimum, MAX: torch.maximum, MEAN: torch.add}
"""How two values are made one; means are kept as sums over tokens."""


def reduction_of(name: str) -> str:
    """How a measure is reduced over micro-batches: by its suffix, otherwise the mean weighted by tokens."""
    return next((suffix for suffix in (SUM, MIN, MAX) if name.endswith(suffix)), MEAN)


class Key(NamedTuple):
    """What a value is kept under."""

    name: str
    per_token: bool
    """A sum over tokens, divided by their number when it is read; otherwise it is read as it stands."""


class MetricAccumulator:
    """Accumulates the results of one step. All values become float64 in one tensor; ``read`` is the only
    synchronisation with the device."""

    def __init__(self) -> None:
        self.values: dict[Key, Tensor] = {}
        self.tokens: Tensor | None = None

    def add_result(self, result: Result, num_targets: Tensor) -> None:
        """A micro-batch: losses are sums, metrics reduced by suffix. ``num_targets`` tokens have a target."""
        num_targets = num_targets.double()
        self.tokens = num_targets if self.tokens is None else self.tokens + num_targets
        self._combine(Key("total", per_token=True), result.total.detach().double(), torch.add)
        for name, value in result.losses.items():
            self._combine(Key(name, per_token=True), value.double(), torch.add)
        for name, value in result.metrics.items():
            value, reduction = value.detach().double(), reduction_of(name)
            mean = reduction == MEAN
            self._combine(Key(name, per_token=mean), value * num_targets if mean else value, COMBINED[reduction])

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Values of the whole step: they stand as they are."""
        for name, value in values.items():
            self.values[Key(name, per_token=False)] = value.detach().double()

    def read(self) -> dict[str, float]:
        """Every number on the host. ``loss`` and each loss are nats per counted token."""
        assert self.tokens is not None, "no micro-batch was added"
        device = self.tokens.device
        packed = [self.tokens, *(value.to(device).reshape(()) for value in self.values.values())]
        tokens, *numbers = torch.stack(packed).tolist()
        read: dict[str, float] = {"tokens": tokens}
        for key, number in zip(self.values, numbers):
            read[key.name] = number / max(tokens, 1.0) if key.per_token else number
        read["loss"] = read.get("cross_entropy", read["total"])
        return read

    def _combine(self, key: Key, value: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.values[key] = combine(self.values[key], value) if key in self.values else value
