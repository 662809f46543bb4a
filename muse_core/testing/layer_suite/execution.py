"""Layers under autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from muse_core.contracts import LayerOutput
from muse_core.testing.cases import Case
from muse_core.testing.execution import assert_near_fp32
from muse_core.testing.layer_suite.base import LayerBase, output_tensors, run
from muse_core.testing.modules import gradients_of, weighted
from muse_core.testing.sequences import Sequence, leaves


@contextlib.contextmanager
def narrow_dynamics(layer: nn.Module) -> Iterator[list[str]]:
    """Yields a list that receives what modules inside ``dynamics`` of a layer give in less than fp32."""
    found: list[str] = []

    def look(name: str) -> Callable[[Any, Any, Any], None]:
        def told(module: Any, given: Any, made: Any) -> None:
            kinds = {x.dtype for x in pytree.tree_leaves(made) if isinstance(x, torch.Tensor) and x.is_floating_point()}
            found.extend(f"{name} gives {kind}" for kind in kinds if kind.itemsize < 4)

        return told

    inside = [(name, module) for name, module in layer.named_modules() if "dynamics" in name.split(".")]
    handles = [module.register_forward_hook(look(name)) for name, module in inside]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


FAR = 1000
"""Positions from here on: in bfloat16 four in a row are the same number."""


def far_into_a_document(sequence: Sequence) -> Sequence:
    """The same ``FAR`` tokens later in its documents, as a window of a long one has it."""
    return attrs.evolve(sequence, tokens=sequence.tokens._replace(positions=sequence.tokens.positions + FAR))


class LayerExecution(LayerBase):
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32 stream", "bf16 stream"])
    def test_bf16_autocast_stays_near_fp32(self, case: Case, dtype: torch.dtype) -> None:
        layer = self.build(case, sequence_length=2 * FAR).eval()
        sequence = far_into_a_document(self.sequence(case, dtype=torch.bfloat16).to(torch.float32))
        with torch.no_grad():
            expected = run(layer, sequence)
            with torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16), narrow_dynamics(layer) as narrow:
                step = run(layer, sequence.to(dtype))
        assert not narrow, f"{narrow[0]}: what is computed in a submodule named dynamics stays fp32 under autocast"
        assert_near_fp32(step.update, expected.update, "update")
        self.check_state_under_autocast(step)

    def check_state_under_autocast(self, step: LayerOutput) -> None:
        for path, value in leaves(step.state).items():
            assert not value.is_floating_point() or value.dtype.itemsize >= 4, f"{path} is {value.dtype} under autocast"

    def test_gradients_under_autocast_are_finite(self, case: Case) -> None:
        layer, sequence = self.build(case).train(), self.sequence(case, dtype=torch.float32)
        with torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16):
            outputs = output_tensors(run(layer, sequence))
        for name, gradient in gradients_of(weighted(outputs), layer).items():
            assert gradient is None or torch.isfinite(gradient).all(), f"the gradient of {name} is not finite"
