"""Adds numbers up on the device over micro-batches and reads them to the host once a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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


def combined(parts: Sequence[Numbers]) -> Numbers:
    """The numbers of several processes as one, added up in the order of the ranks.

    What micro-batches add up is combined as over micro-batches. Values of the whole step, which every process has, are
    the largest (``_min``: the smallest), so that damage in one is damage. A NaN stays one in either, which collectives
    with MAX do not promise.
    """
    found: dict[Key, float] = {}
    for _, numbers in parts:
        for key, number in numbers.items():
            if key not in found:
                found[key] = number
            elif key.per_token or (key.added and reduction_of(key.name) == SUM):
                found[key] += number
            else:
                found[key] = _extreme(found[key], number, least=key.name.endswith(MIN))
    return sum(tokens for tokens, _ in parts), found


def _extreme(one: float, other: float, *, least: bool) -> float:
    if math.isnan(one) or math.isnan(other):
        return math.nan
    return min(one, other) if least else max(one, other)


class Key(NamedTuple):
    """What a value is kept under."""

    name: str
    per_token: bool
    """A sum over tokens, divided by their number when it is read; otherwise it is read as it stands."""
    added: bool = True
    """Put together from micro-batches; otherwise a value of the whole step."""


Numbers = tuple[float, dict[Key, float]]
"""Counted tokens and every value."""


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
            self.values[Key(name, per_token=False, added=False)] = value.detach().double()

    def numbers(self) -> Numbers:
        """Everything on the host."""
        assert self.tokens is not None, "no micro-batch was added"
        device = self.tokens.device
        packed = [self.tokens, *(value.to(device).reshape(()) for value in self.values.values())]
        tokens, *values = torch.stack(packed).tolist()
        return tokens, dict(zip(self.values, values, strict=True))

    def read(self) -> dict[str, float]:
        """Every number of this process; see ``read``."""
        return read(self.numbers())

    def _combine(self, key: Key, value: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.values[key] = combine(self.values[key], value) if key in self.values else value


def read(numbers: Numbers) -> dict[str, float]:
    """Numbers by name. ``loss`` and each loss are nats per counted token."""
    tokens, values = numbers
    found: dict[str, float] = {"tokens": tokens}
    for key, value in values.items():
        found[key.name] = value / max(tokens, 1.0) if key.per_token else value
    found["loss"] = found.get("cross_entropy", found["total"])
    return found
