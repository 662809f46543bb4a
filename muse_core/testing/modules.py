"""What holds for every component that is a torch module: parameters, seeds, state_dict."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muse_core.testing.cases import Case
from muse_core.testing.import_probe import settings
from muse_core.testing.sequences import assert_close, enliven
from muse_core.testing.suite import Suite


class ModuleSuite(Suite):
    """Needs ``outputs``: some output tensors of a built module for fixed inputs."""

    def outputs(self, case: Case, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        raise NotImplementedError

    def double(self, case: Case, **changes: Any) -> Any:
        """The component in float64 as the exact equalities need it."""
        return self.build(case, dtype="float64", **changes).double()

    def lively(self, case: Case, **changes: Any) -> Any:
        """A float64 copy whose near-zero parameters are random, so that no dead branch hides a fault."""
        return enliven(self.double(case, **changes))

    def test_parameters_and_buffers_are_real_and_at_least_fp32(self, case: Case) -> None:
        module = self.build(case)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            assert not tensor.is_complex(), f"{name} is complex; store a trailing axis of 2"
            if tensor.is_floating_point():
                assert tensor.dtype.itemsize >= 4, f"{name} is {tensor.dtype}"
            assert torch.isfinite(tensor).all(), f"{name} is not finite"

    def test_initial_values_depend_on_the_seed_alone(self, case: Case) -> None:
        before = torch.random.get_rng_state()
        first = self.build(case, seed=3).state_dict()
        assert torch.equal(torch.random.get_rng_state(), before), "building moved torch's global generator"
        torch.rand(7)
        second = self.build(case, seed=3).state_dict()
        assert first.keys() == second.keys(), "two builds have other parameters"
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{name} differs between two builds with the same seed"

    def test_the_same_input_gives_the_same_bits(self, case: Case) -> None:
        module = self.build(case).eval()
        first, second = self.outputs(case, module, torch.float32), self.outputs(case, module, torch.float32)
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{name} differs between two calls in eval mode"

    def test_a_call_keeps_its_parameters(self, case: Case) -> None:
        """What trains and averages it holds the parameters that were built: one that a call makes, or detaches, is not
        trained."""
        module = self.build(case).train()
        built = dict(module.named_parameters())
        trained = {name for name, parameter in built.items() if parameter.requires_grad}
        self.outputs(case, module, torch.float32)
        held = dict(module.named_parameters())
        changed = sorted(name for name in built.keys() | held.keys() if built.get(name) is not held.get(name))
        assert not changed, f"a call replaces, adds or drops {', '.join(changed)}: write into the parameter instead"
        frozen = sorted(trained ^ {name for name, parameter in held.items() if parameter.requires_grad})
        assert not frozen, f"a call changes requires_grad of {', '.join(frozen)}: detach what is computed from it"

    def test_using_it_changes_nothing_global(self, case: Case) -> None:
        """Building it and calling it in evaluation, where nothing is random. Libraries that it imports only then may
        add warning filters."""
        before = settings()
        self.outputs(case, self.build(case).eval(), torch.float32)
        after = settings()
        changed = [name for name, value in before.items() if after[name] != value and name != "warning filters"]
        assert not changed, f"changes {', '.join(changed)}"

    def test_state_dict_carries_everything(self, case: Case) -> None:
        source, target = self.double(case, seed=3).eval(), self.double(case, seed=4).eval()
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.mul_(1.25)
        target.load_state_dict(source.state_dict())
        expected, actual = self.outputs(case, source, torch.float64), self.outputs(case, target, torch.float64)
        for name, value in expected.items():
            assert_close(actual[name], value, f"{name} after load_state_dict", within=0.0)

    def test_a_float64_copy_stays_float64(self, case: Case) -> None:
        for name, value in self.outputs(case, self.double(case).eval(), torch.float64).items():
            if value.is_floating_point():
                assert value.dtype == torch.float64, f"{name} is {value.dtype} in a float64 copy"

    def test_statistics_take_an_empty_step(self, case: Case) -> None:
        module = self.build(case)
        for progress in (0.0, 0.5, 1.0):
            for part in module.modules():
                if hasattr(part, "update_statistics"):
                    before = kept_by_a_recording(part)
                    part.update_statistics({}, progress)
                    if getattr(part, "fills_buffers", False):
                        assert kept_by_a_recording(part) == before, (
                            "fills_buffers is true, but update_statistics changes more than the numbers in buffers"
                        )
        for name, value in self.outputs(case, module.eval(), torch.float32).items():
            assert torch.isfinite(value).all(), f"{name} is not finite after update_statistics"


def kept_by_a_recording(part: nn.Module) -> tuple[dict[str, int], str]:
    """What a recorded step reads as it once was: where buffers lie, and the module's attributes that are no tensors."""
    places = {name: buffer.data_ptr() for name, buffer in part.named_buffers()}
    return places, repr({name: value for name, value in vars(part).items() if name not in ("_buffers", "_parameters")})


def gradients_of(total: Tensor, module: nn.Module) -> dict[str, Tensor | None]:
    """Gradient of a scalar by parameter name; None where it does not reach."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not named:
        return {}
    found = torch.autograd.grad(total, [parameter for _, parameter in named], allow_unused=True)
    return dict(zip((name for name, _ in named), found))


def assert_reached(gradients: dict[str, Tensor | None]) -> None:
    """Every parameter has a finite gradient that is not zero; all that have none are named."""
    without = [name for name, gradient in gradients.items() if gradient is None]
    assert not without, f"no gradient reaches {', '.join(without)}"
    known = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    broken = [name for name, gradient in known.items() if not torch.isfinite(gradient).all()]
    assert not broken, f"the gradient of {', '.join(broken)} is not finite"
    zero = [name for name, gradient in known.items() if not gradient.any()]
    assert not zero, f"the gradient of {', '.join(zero)} is zero everywhere"


def weighted(outputs: dict[str, Tensor], *, seed: int = 5) -> Tensor:
    """A scalar that depends on every entry of every floating output, with fixed random weights."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for value in outputs.values():
        weight = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if value.is_floating_point():
            total = total + (value.double() * weight.to(value.device)).sum().to(total.device)
    return total
