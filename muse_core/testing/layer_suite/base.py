"""How the layer suite builds, feeds and runs a layer."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn

from muse_core.component import grids, provided
from muse_core.contracts import LayerOutput, State
from muse_core.errors import MuseError
from muse_core.plugins import Registry
from muse_core.testing.building import resolve
from muse_core.testing.cases import Case
from muse_core.testing.execution import DerivativeSuite
from muse_core.testing.sequences import Sequence, make_tokens, random_sequence, tokens_on
from muse_core.testing.signals import needed_shapes

PERIOD = 8
"""What the suite sets the option ``period`` to, so that short sequences have several."""

FAR = 96
"""Tokens of a long sequence: more than a window or a chunk of 64."""

_read: dict[tuple[int, str, str, str], tuple[Registry, Any]] = {}
"""Options of a case, which each of its tests asks for several times. The registry is kept, so that its id stays."""


class LayerBase(DerivativeSuite):
    """Letters: B batch rows, N tokens, D width."""

    kind = "layer"
    width = 16
    """Width D of the residual stream."""
    batch = 3
    length = 21
    """Tokens N: more than two periods, and no multiple of one."""
    device: ClassVar[str] = "cpu"
    """Where the layer is checked; ``muse plugins check --device`` sets it."""

    def build(self, case: Case, **changes: Any) -> nn.Module:
        only = getattr(self.options_of(case), "device_only", None)
        if only is not None and only != self.device.partition(":")[0]:
            pytest.skip(f"runs on {only} only - check it with: muse plugins check --device {only}")
        changes = {"width": self.width, "sequence_length": 64, "signals": self.signals(case)} | changes
        changes = {"device": self.device} | changes
        layer: nn.Module = super().build(self.with_period(case), **changes)
        return layer

    def with_period(self, case: Case) -> Case:
        """The case with a short period, where the component has that option and the case leaves it open."""
        fields = [field.name for field in attrs.fields(self.component(case).options)]
        if "period" not in fields or "period" in case.options:
            return case
        return Case(kind=case.kind, name=case.name, options={**case.options, "period": PERIOD}, derived=case.derived)

    def double(self, case: Case, **changes: Any) -> nn.Module:
        """In float64, or in the widest precision that its options class says it has."""
        widest = self.widest(case)
        return self.build(case, dtype=str(widest).removeprefix("torch."), **changes).to(widest)

    def widest(self, case: Case) -> torch.dtype:
        """float64 unless its options class says ``widest_precision = "float32"`` or ``"bfloat16"``."""
        found: torch.dtype = getattr(torch, getattr(self.options_of(case), "widest_precision", "float64"))
        return found

    def options_of(self, case: Case) -> Any:
        case, registry = self.with_period(case), self.registry()
        key = id(registry), case.kind, case.name, repr(case.options)
        if key not in _read:
            try:
                options = resolve(case.kind, case.name, case.options, registry).options
            except MuseError:
                return super().build(case)
            _read[key] = registry, options
        return _read[key][1]

    def period(self, case: Case) -> int | None:
        """Tokens of the grid that the case acts on, or of its period."""
        options = self.options_of(case)
        return math.lcm(*found) if (found := grids(options)) else getattr(options, "period", None)

    def adds_nothing(self, case: Case) -> bool:
        """Whether all that the layer returns is losses and metrics: its options class says so by ``adds_nothing =
        True``."""
        return getattr(self.options_of(case), "adds_nothing", False)

    def signals(self, case: Case) -> dict[str, tuple[int, ...]]:
        """Every signal that the case reads, with the trailing shape that an installed layer gives it."""
        return needed_shapes(self.options_of(case), self.registry(), self.width)

    def published(self, case: Case) -> dict[str, tuple[int, ...]]:
        return provided(self.options_of(case), self.width)

    def sequence(self, case: Case, **changes: Any) -> Sequence:
        sizes: dict[str, Any] = {"batch": self.batch, "length": self.length, "width": self.width}
        given = sizes | {"signals": self.signals(case)} | changes
        widest = self.widest(case)
        if given.get("dtype", torch.float64).itemsize > widest.itemsize:
            given["dtype"] = widest
        return random_sequence(**given).on(self.device)

    def test_a_float64_copy_stays_float64(self, case: Case) -> None:
        if self.widest(case) != torch.float64:
            pytest.skip(f"says that its widest precision is {self.widest(case)}")
        super().test_a_float64_copy_stays_float64(case)

    def outputs(self, case: Case, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        return output_tensors(run(module, self.sequence(case, dtype=dtype)))

    def inputs(self, case: Case, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        sequence = self.sequence(case, dtype=dtype)
        return {"x": sequence.x} | sequence.signals

    def call(self, case: Case, module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        signals = {name: value for name, value in inputs.items() if name != "x"}
        tokens = tokens_on(make_tokens(self.batch, self.length, documents=True), self.device)
        step = run(module, Sequence(x=inputs["x"], signals=signals, tokens=tokens))
        return output_tensors(step) | {f"loss {name}": value for name, value in step.losses.items()}


def run(layer: nn.Module, sequence: Sequence, state: State = None) -> LayerOutput:
    """One forward call."""
    step: LayerOutput = layer(sequence.x, state, dict(sequence.signals), sequence.tokens)
    return step


def output_tensors(step: LayerOutput) -> dict[str, Tensor]:
    """What later layers see of a step, by name."""
    return {"update": step.update} | {f"signal {name}": value for name, value in sorted(step.signals.items())}


def run_in_pieces(
    layer: nn.Module, sequence: Sequence, pieces: list[tuple[int, int]], period: int | None
) -> tuple[dict[str, Tensor], State]:
    """Outputs of calls over pieces with the state carried, joined, and the last state."""
    state: State = None
    collected: dict[str, list[Tensor]] = {}
    for start, stop in pieces:
        step = run(layer, sequence.piece(start, stop, period=period), state)
        state = step.state
        for name, value in output_tensors(step).items():
            collected.setdefault(name, []).append(value)
    return {name: torch.cat(values, dim=1) for name, values in collected.items()}, state
