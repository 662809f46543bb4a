"""Autocast, torch.compile and activation checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from muse_core.testing.cases import Case
from muse_core.testing.layer_suite.base import LayerBase, output_tensors, run
from muse_core.testing.modules import gradients_of, weighted
from muse_core.testing.sequences import assert_close, leaves

DRIFT = 0.1
"""Root mean square error under bf16 autocast relative to the fp32 result; a bf16 product has 2⁻⁸ = 0.4 %."""


class LayerExecution(LayerBase):
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32 stream", "bf16 stream"])
    def test_bf16_autocast_stays_near_fp32(self, case: Case, dtype: torch.dtype) -> None:
        layer = self.build(case).eval()
        sequence = self.sequence(case, dtype=torch.bfloat16).to(torch.float32)
        with torch.no_grad():
            expected = run(layer, sequence)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                step = run(layer, sequence.to(dtype))
        difference = (step.update.float() - expected.update).square().mean().sqrt()
        assert torch.isfinite(step.update).all(), "not finite under autocast"
        assert difference <= DRIFT * expected.update.square().mean().sqrt(), f"drifts by {difference:.3g}"
        for path, value in leaves(step.state).items():
            assert not value.is_floating_point() or value.dtype.itemsize >= 4, f"{path} is {value.dtype} under autocast"

    def test_gradients_under_autocast_are_finite(self, case: Case) -> None:
        layer, sequence = self.build(case).train(), self.sequence(case, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = output_tensors(run(layer, sequence))
        for name, gradient in gradients_of(weighted(outputs), layer).items():
            assert gradient is None or torch.isfinite(gradient).all(), f"the gradient of {name} is not finite"

    def test_activation_checkpointing_changes_nothing(self, case: Case) -> None:
        layer = self.lively(case).train()
        found = []
        for recompute in (False, True):
            sequence = self.sequence(case, documents=True)
            x = sequence.x.requires_grad_()
            torch.manual_seed(0)
            step = checkpoint(run, layer, sequence, use_reentrant=False) if recompute else run(layer, sequence)
            total = weighted(output_tensors(step))
            if not total.requires_grad:
                pytest.skip("nothing to train")
            gradients = torch.autograd.grad(total, [x, *layer.parameters()], allow_unused=True)
            found.append([gradient for gradient in gradients if gradient is not None])
        for plain, recomputed in zip(*found, strict=True):
            assert_close(recomputed, plain, "gradient with recomputed activations")

    def test_compiles(self, case: Case) -> None:
        """By the tracer alone (aot_eager): code generation is torch's matter and takes a minute."""
        if case.derived:
            pytest.skip("the defaults compile; a variant costs seconds more")
        layer, sequence = self.build(case).train(), self.sequence(case, dtype=torch.float32)
        torch.compiler.reset()
        compiled: Any = torch.compile(layer, backend="aot_eager")
        expected, actual = output_tensors(run(layer, sequence)), output_tensors(run(compiled, sequence))
        for name, value in expected.items():
            assert_close(actual[name], value, f"{name} compiled", within=1e-4)
        compiled_gradients = gradients_of(weighted(actual), layer)
        for name, gradient in gradients_of(weighted(expected), layer).items():
            other = compiled_gradients[name]
            assert (gradient is None) == (other is None), f"compiling changes whether a gradient reaches {name}"
            if gradient is not None and other is not None:
                assert_close(other, gradient, f"gradient of {name} compiled", within=1e-3)
