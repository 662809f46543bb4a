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


class Packed(NamedTuple):
    """The numbers of a step in one tensor on the device, float64: counted tokens and a value for each key."""

    keys: tuple[Key, ...]
    values: Tensor

    def numbers(self) -> Numbers:
        """Everything on the host, by the only synchronisation with the device."""
        tokens, *values = self.values.tolist()
        return tokens, dict(zip(self.keys, values, strict=True))

    def with_values(self, values: Mapping[str, Tensor]) -> Packed:
        """These and more values, of the whole step: they stand as they are."""
        if not values:
            return self
        keys = tuple(Key(name, per_token=False, added=False) for name in values)
        return Packed(self.keys + keys, torch.cat((self.values, together(list(values.values()), self.values.device))))


class Column(NamedTuple):
    """Values that are combined over micro-batches in the same way, as one vector."""

    keys: tuple[Key, ...]
    values: Tensor

    def combined(self, other: Column, combine: Callable[[Tensor, Tensor], Tensor]) -> Column:
        """With those of a further micro-batch, which need not have the same keys."""
        if self.keys == other.keys:
            return Column(self.keys, combine(self.values, other.values))
        mine, more = dict(zip(self.keys, self.values)), dict(zip(other.keys, other.values))
        for key, value in more.items():
            mine[key] = combine(mine[key], value) if key in mine else value
        return Column(tuple(mine), torch.stack(list(mine.values())))


class MetricAccumulator:
    """Accumulates the results of one step, as float64 on the device. A micro-batch of a hundred measures is a dozen
    operations: what is reduced alike is one vector."""

    def __init__(self) -> None:
        self.columns: dict[str, Column] = {}
        """By the reduction; sums and means, as sums over tokens, are one."""
        self.tokens: Tensor | None = None

    def add_result(self, result: Result, num_targets: Tensor) -> None:
        """A micro-batch: losses are sums, metrics reduced by suffix. ``num_targets`` tokens have a target."""
        num_targets = num_targets.double()
        self.tokens = num_targets if self.tokens is None else self.tokens + num_targets
        sums = {Key("total", per_token=True): result.total.detach()}
        sums |= {Key(name, per_token=True): value for name, value in result.losses.items()}
        found: dict[str, dict[Key, Tensor]] = {SUM: sums, MEAN: {}, MIN: {}, MAX: {}}
        for name, value in result.metrics.items():
            reduction = reduction_of(name)
            found[reduction][Key(name, per_token=reduction == MEAN)] = value.detach()
        for reduction, values in found.items():
            if not values:
                continue
            vector = together(list(values.values()), num_targets.device)
            column = Column(tuple(values), vector * num_targets if reduction == MEAN else vector)
            before = self.columns.get(reduction)
            self.columns[reduction] = column if before is None else before.combined(column, COMBINED[reduction])

    def packed(self) -> Packed:
        """Every number of this process, on the device."""
        assert self.tokens is not None, "no micro-batch was added"
        columns = self.columns.values()
        keys = tuple(key for column in columns for key in column.keys)
        return Packed(keys, torch.cat((self.tokens.reshape(1), *(column.values for column in columns))))

    def numbers(self) -> Numbers:
        """Everything on the host."""
        return self.packed().numbers()

    def read(self) -> dict[str, float]:
        """Every number of this process; see ``read``."""
        return read(self.numbers())


def together(values: Sequence[Tensor], device: torch.device) -> Tensor:
    """Scalars as one float64 vector on ``device``, in few operations where their types are few."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, value in enumerate(values):
        groups.setdefault((value.device, value.dtype), []).append(place)
    with torch.no_grad():  # rather than a detached view of each of hundreds
        parts = [
            torch.stack([value.reshape(()) if value.ndim else value for value in (values[place] for place in places)])
            .to(device).double()
            for places in groups.values()
        ]
    if len(parts) == 1:
        return parts[0]
    order = [place for places in groups.values() for place in places]
    scattered = torch.cat(parts).unbind()
    return torch.stack([scattered[order.index(place)] for place in range(len(values))])


def read(numbers: Numbers) -> dict[str, float]:
    """Numbers by name. ``loss`` and each loss are nats per counted token."""
    tokens, values = numbers
    found: dict[str, float] = {"tokens": tokens}
    for key, value in values.items():
        found[key.name] = value / max(tokens, 1.0) if key.per_token else value
    found["loss"] = found.get("cross_entropy", found["total"])
    return found
