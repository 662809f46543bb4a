"""Ways to run a module that must not change what it computes: activation checkpointing, torch.compile, differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from muse_core.model.seeding import set_seed
from muse_core.testing.cases import Case
from muse_core.testing.modules import ModuleSuite, gradients_of, weighted
from muse_core.testing.sequences import assert_close

DRIFT = 0.1
"""Root mean square error under bf16 autocast relative to the fp32 result; a bf16 product has 2⁻⁸ = 0.4 %."""

STEP = 1e-6
RELATIVE = 1e-6


class ExecutionSuite(ModuleSuite):
    """Needs ``inputs`` and ``call``."""

    compile_backend: ClassVar[str] = "aot_eager"
    """The tracers of forward and backward alone: code generation is torch's matter and takes a minute."""

    def inputs(self, case: Case, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        """Fixed floating inputs by name, each time new tensors."""
        raise NotImplementedError

    def call(self, case: Case, module: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Everything that the module computes from them and that may have a gradient."""
        raise NotImplementedError

    def test_activation_checkpointing_changes_nothing(self, case: Case) -> None:
        module = self.lively(case).train()
        found = []
        for recompute in (False, True):
            inputs = {name: value.requires_grad_() for name, value in self.inputs(case, module, torch.float64).items()}
            arguments = (case, module, inputs)
            set_seed(0)
            outputs = checkpoint(self.call, *arguments, use_reentrant=False) if recompute else self.call(*arguments)
            total = weighted(outputs)
            if not total.requires_grad:
                pytest.skip("nothing to train")
            gradients = torch.autograd.grad(total, [*inputs.values(), *module.parameters()], allow_unused=True)
            found.append([gradient for gradient in gradients if gradient is not None])
        for plain, recomputed in zip(*found, strict=True):
            assert_close(recomputed, plain, "gradient with recomputed activations")

    def test_compiles(self, case: Case) -> None:
        if case.derived:
            pytest.skip("the defaults compile; a variant costs seconds more")
        module = self.build(case).train()
        inputs = self.inputs(case, module, torch.float32)
        torch.compiler.reset()
        compiled: Any = torch.compile(module, backend=self.compile_backend)
        expected, actual = self.call(case, module, inputs), self.call(case, compiled, inputs)
        for name, value in expected.items():
            assert_close(actual[name], value, f"{name} compiled", within=1e-4)
        total = weighted(expected)
        if not total.requires_grad:
            return
        compiled_gradients = gradients_of(weighted(actual), module)
        for name, gradient in gradients_of(total, module).items():
            other = compiled_gradients[name]
            assert (gradient is None) == (other is None), f"compiling changes whether a gradient reaches {name}"
            if gradient is not None and other is not None:
                assert_close(other, gradient, f"gradient of {name} compiled", within=1e-3)


class DerivativeSuite(ExecutionSuite):
    """For kinds whose gradients are derivatives; filters and routers may stop some on purpose."""

    def test_gradients_are_the_derivative(self, case: Case) -> None:
        """Along a random direction of inputs and parameters, against a fourth-order central difference."""
        module = self.lively(case).eval()
        inputs = {name: value.requires_grad_() for name, value in self.inputs(case, module, torch.float64).items()}
        leaves = {f"input {name}": value for name, value in inputs.items()}
        leaves |= {f"parameter {name}": value for name, value in module.named_parameters() if value.requires_grad}
        generator = torch.Generator().manual_seed(11)
        if any(leaf.dtype != torch.float64 for leaf in leaves.values()):
            pytest.skip("differences need float64, which it does not have")
        directions = {
            name: torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.device)
            for name, leaf in leaves.items()
        }

        def total() -> Tensor:
            return weighted(self.call(case, module, inputs))

        value = total()
        if not value.requires_grad:
            pytest.skip("nothing to train")
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        predicted = {
            name: 0.0 if gradient is None else (gradient * directions[name]).sum().item()
            for name, gradient in zip(leaves, gradients)
        }
        if close(sum(predicted.values()), found := slope(total, leaves, directions)):
            return
        alone = {name: slope(total, {name: leaf}, directions) for name, leaf in leaves.items()}
        wrong = [
            f"for {name} alone {predicted[name]:.6g} and {measured:.6g}"
            for name, measured in alone.items() if not close(predicted[name], measured)
        ]
        raise AssertionError(
            f"along a random direction autograd gives {sum(predicted.values()):.9g}, differences {found:.9g}"
            + "".join(f"; {one}" for one in wrong)
        )


def slope(total: Callable[[], Tensor], leaves: Mapping[str, Tensor], directions: Mapping[str, Tensor]) -> float:
    """The derivative of ``total`` along the directions of these leaves, by a fourth-order central difference."""
    points = {}
    with torch.no_grad():
        for multiple in (-2, -1, 1, 2):
            for name, leaf in leaves.items():
                leaf += multiple * STEP * directions[name]
            points[multiple] = total().item()
            for name, leaf in leaves.items():
                leaf -= multiple * STEP * directions[name]
    return float((8 * (points[1] - points[-1]) - (points[2] - points[-2])) / (12 * STEP))


def close(predicted: float, measured: float) -> bool:
    """Whether a derivative and a difference agree; NaN agrees with nothing."""
    return abs(measured - predicted) <= RELATIVE * max(1.0, abs(measured), abs(predicted))


def assert_near_fp32(actual: Tensor, expected: Tensor, what: str) -> None:
    """What autocast may lose."""
    assert torch.isfinite(actual).all(), f"{what} is not finite under autocast"
    difference = (actual.float() - expected.float()).square().mean().sqrt()
    assert difference <= DRIFT * expected.float().square().mean().sqrt(), f"{what} drifts by {difference:.3g}"
