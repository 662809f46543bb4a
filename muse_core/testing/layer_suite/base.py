"""How the layer suite builds, feeds and runs a layer."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from muse_core.component import provided, required
from muse_core.contracts import State, Step
from muse_core.errors import MuseError
from muse_core.plugins import Registry
from muse_core.testing.building import resolve
from muse_core.testing.cases import Case
from muse_core.testing.modules import ModuleSuite
from muse_core.testing.sequences import Sequence, enliven, random_sequence

PERIOD = 8
"""What the suite sets the option ``period`` to, so that short sequences have several."""


class LayerBase(ModuleSuite):
    """Letters: B batch rows, N tokens, D width."""

    kind = "layer"
    width = 16
    """Width D of the residual stream."""
    batch = 3
    length = 21
    """Tokens N: more than two periods, and no multiple of one."""

    def build(self, case: Case, **changes: Any) -> nn.Module:
        changes = {"width": self.width, "sequence_length": 64, "signals": self.signals(case)} | changes
        layer: nn.Module = super().build(self.with_period(case), **changes)
        return layer

    def with_period(self, case: Case) -> Case:
        """The case with a short period, where the component has that option and the case leaves it open."""
        fields = [field.name for field in attrs.fields(self.component(case).options)]
        if "period" not in fields or "period" in case.options:
            return case
        return Case(kind=case.kind, name=case.name, options={**case.options, "period": PERIOD}, derived=case.derived)

    def options_of(self, case: Case) -> Any:
        try:
            return resolve(case.kind, case.name, self.with_period(case).options, self.registry()).options
        except MuseError:
            return super().build(case)

    def period(self, case: Case) -> int | None:
        return getattr(self.options_of(case), "period", None)

    def adds_nothing(self, case: Case) -> bool:
        """Whether all that the layer returns is losses and measures: its options class says so by ``adds_nothing =
        True``."""
        return getattr(self.options_of(case), "adds_nothing", False)

    def signals(self, case: Case) -> dict[str, tuple[int, ...]]:
        """Every signal that the case reads, with the trailing shape that an installed layer gives it."""
        needs = {need.signal for need in required(self.options_of(case))}
        return {name: shape for name, shape in published_shapes(self.registry(), self.width).items() if name in needs}

    def published(self, case: Case) -> dict[str, tuple[int, ...]]:
        return provided(self.options_of(case), self.width)

    def sequence(self, case: Case, **changes: Any) -> Sequence:
        sizes: dict[str, Any] = {"batch": self.batch, "length": self.length, "width": self.width}
        given = sizes | {"signals": self.signals(case)}
        return random_sequence(**(given | changes))

    def lively(self, case: Case, **changes: Any) -> nn.Module:
        """A float64 copy whose near-zero parameters are random, so that no dead branch hides a fault."""
        return enliven(self.double(case, **changes))

    def outputs(self, case: Case, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        return output_tensors(run(module, self.sequence(case, dtype=dtype)))


def run(layer: nn.Module, sequence: Sequence, state: State = None) -> Step:
    """One forward call."""
    step: Step = layer(sequence.x, state, dict(sequence.signals), sequence.tokens)
    return step


def output_tensors(step: Step) -> dict[str, Tensor]:
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


def published_shapes(registry: Registry, width: int) -> dict[str, tuple[int, ...]]:
    """Trailing shape of every signal that a layer with its default options provides."""
    found: dict[str, tuple[int, ...]] = {}
    for row in (*registry.rows("layer"), *registry.rows("memory layer")):
        try:
            options = resolve(row.kind, row.reference, {}, registry).options
        except MuseError:
            continue
        for name, shape in provided(options, width).items():
            found.setdefault(name, shape)
    return found
