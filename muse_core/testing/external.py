"""Runs the layer suite against layers that were not written for MUSE, through an adapter of a few lines.

Needs no plugin: a test class says how a layer is built and how it is called::

    class TestGatedDeltaNet(ExternalLayerSuite):
        supports = frozenset({"state", "documents", "padding"})
        precision = torch.float32

        def make(self):
            return GatedDeltaNet(hidden_size=self.width)

        def step(self, layer, x, state, tokens):
            return layer(x, state), state

What the library does not claim to do is left out of ``supports``; tests of it are skipped in words, so that what fails
is what the library claims.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.seeding import seeded
from muse_core.testing.cases import Case
from muse_core.testing.layers import LayerSuite

ABILITIES = frozenset({"state", "gradients of state", "documents", "padding", "autocast", "compiles"})
"""state: a call returns what the next one continues from; gradients of state: they flow through it; documents: several
in a row, kept apart; padding: rows that end early leave their state alone; autocast: bf16 mixed precision; compiles:
torch.compile traces it."""


@attrs.frozen
class ExternalOptions:
    """What the suite asks an options class; an external layer has none."""

    widest_precision: str


class ExternalLayer(nn.Module):
    """A layer of another library under the contract of ``contracts.Layer``."""

    def __init__(self, suite: ExternalLayerSuite, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.suite = suite

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        supports = self.suite.supports
        if tokens.resets is not None and "documents" not in supports:
            if tokens.resets.any():
                pytest.skip("takes no document starts inside a row")
            tokens = tokens._replace(resets=None)
        if tokens.valid is not None and "padding" not in supports:
            pytest.skip("takes no padded rows")
        if "state" not in supports and (state is not None or tokens.positions[:, 0].any()):
            pytest.skip("continues no earlier call")
        if state is not None and torch.is_grad_enabled() and "gradients of state" not in supports:
            pytest.skip("has no gradients through its state")
        return LayerOutput(*self.suite.step(self.layer, x, state, tokens))


class ExternalLayerSuite(LayerSuite):
    """Everything that ``contracts.Layer`` promises, asked of a layer of another library."""

    supports: ClassVar[frozenset[str]] = ABILITIES
    """What the library says that the layer does, among ``ABILITIES``."""
    precision: ClassVar[torch.dtype] = torch.float64
    """The widest that the layer computes in."""

    def make(self) -> nn.Module:
        """A new layer of ``self.width`` with its own initial values, drawn from torch's generator."""
        raise NotImplementedError

    def step(self, layer: nn.Module, x: Tensor, state: State, tokens: Tokens) -> tuple[Tensor, State]:
        """(y, state) of one call; x and y (B, N, D), ``state`` a tree of dicts of tensors, None at the start."""
        raise NotImplementedError

    @classmethod
    def cases(cls, folder: Path) -> list[Case]:
        unknown = sorted(cls.supports - ABILITIES)
        if unknown:
            raise pytest.UsageError(f"{cls.__name__}.supports: {', '.join(unknown)} is none of {sorted(ABILITIES)}")
        return [Case(kind=cls.kind, name=cls.__name__.removeprefix("Test"), options={})]

    def build(self, case: Case, **changes: Any) -> nn.Module:
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            pytest.skip("runs on a GPU only")
        with seeded(changes.get("seed", 0), case.name):
            layer = ExternalLayer(self, self.make())
        return layer.to(self.device, self.precision if self.is_narrow() else None)

    def is_narrow(self) -> bool:
        """Whether the layer computes in less than float32, and so takes no weights in float32 either."""
        return self.precision.itemsize < 4

    def options_of(self, case: Case) -> Any:
        return ExternalOptions(str(self.precision).removeprefix("torch."))

    def needs(self, ability: str) -> None:
        if ability not in self.supports:
            pytest.skip(f"does not claim: {ability}")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32 stream", "bf16 stream"])
    def test_bf16_autocast_stays_near_fp32(self, case: Case, dtype: torch.dtype) -> None:
        self.needs("autocast")
        super().test_bf16_autocast_stays_near_fp32(case, dtype)

    def test_parameters_and_buffers_are_real_and_at_least_fp32(self, case: Case) -> None:
        if self.is_narrow():
            pytest.skip(f"says that its widest precision is {self.precision}")
        super().test_parameters_and_buffers_are_real_and_at_least_fp32(case)

    def check_state_under_autocast(self, step: LayerOutput) -> None:
        """That state stays fp32 is a rule of ours, not of theirs."""

    def test_gradients_under_autocast_are_finite(self, case: Case) -> None:
        self.needs("autocast")
        super().test_gradients_under_autocast_are_finite(case)

    def test_compiles(self, case: Case) -> None:
        self.needs("compiles")
        super().test_compiles(case)

    # An external layer has no options class, no row in a registry and no nested components of ours.
    test_options_can_be_written_in_a_recipe = None
    test_every_option_is_documented = None
    test_the_implementation_has_the_methods_of_its_kind = None
    test_what_is_nested_gets_its_metrics_back = None
    test_statistics_take_an_empty_step = None


def tree_of(value: Any) -> State:
    """Tensors in tuples, lists and dicts as a tree of dicts; None stays out. ``tuple_of`` makes a tuple again."""
    if value is None or isinstance(value, Tensor):
        return value
    items = value.items() if isinstance(value, Mapping) else ((str(index), item) for index, item in enumerate(value))
    return {str(key): tree_of(item) for key, item in items if item is not None}


def tuple_of(tree: Any, length: int) -> tuple[Any, ...]:
    """A tuple back from ``tree_of``, None where nothing was."""
    return tuple(tree.get(str(index)) for index in range(length))
