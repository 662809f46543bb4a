"""The conformance suite of filters of fast weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from muse_core.contracts import Period, State
from muse_core.testing.cases import Case
from muse_core.testing.execution import ExecutionSuite
from muse_core.testing.sequences import assert_close, assert_same_state, leaves, mapped


class Moment(NamedTuple):
    """What a filter reads at the end of a period. B rows, H heads, K × M weights."""

    before: Tensor
    after: Tensor
    period: Period

    def rows(self, chosen: Any) -> Moment:
        return Moment(self.before[chosen], self.after[chosen], Period(*(value[chosen] for value in self.period)))


class FilterSuite(ExecutionSuite):
    """Once a period, (before, after, period, state) → (weights, state, metrics); see ``contracts.Filter``."""

    kind = "filter"
    batch, heads, key, value = 3, 2, 8, 6
    periods = 4

    def build(self, case: Case, **changes: Any) -> nn.Module:
        module: nn.Module = super().build(case, **({"period": 8, "key_width": self.key} | changes))
        return module

    def moments(self, dtype: torch.dtype = torch.float64, *, reset: int | None = None, seed: int = 0) -> list[Moment]:
        """Periods in a row: decay and noise writes; at ``reset`` row 1 starts a document."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.batch, self.heads, self.key, self.value)
        weights = torch.randn(shape, generator=generator, dtype=torch.float64)
        found = []
        for index in range(self.periods):
            starts = torch.zeros(self.batch, dtype=torch.bool)
            if index == reset:
                starts[1] = True
            weights = weights.masked_fill(starts[:, None, None, None], 0.0)
            decay = -torch.rand(self.batch, self.heads, generator=generator, dtype=torch.float64)
            writes = torch.randn(shape, generator=generator, dtype=torch.float64)
            after = weights * decay.exp()[..., None, None] + writes
            scale = torch.full((self.batch, self.heads), 1.0, dtype=torch.float64)
            found.append(Moment(weights.to(dtype), after.to(dtype), Period(decay.to(dtype), scale.to(dtype), starts)))
            weights = after
        return found

    def outputs(self, case: Case, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        weights, state, _ = apply(module, self.moments(dtype))
        return {"weights": weights[-1]} | leaves(state)

    def inputs(self, case: Case, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        return {f"after {index}": moment.after for index, moment in enumerate(self.moments(dtype)[:2])}

    def call(self, case: Case, module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = inputs["after 0"].dtype
        weights, _, _ = apply(
            module, [moment._replace(after=after) for moment, after in zip(self.moments(dtype), inputs.values())]
        )
        return {f"weights {index}": value for index, value in enumerate(weights)}

    def test_returns_weights_state_and_metrics(self, case: Case) -> None:
        module, moment = self.build(case), self.moments(torch.float32)[0]
        weights, state, metrics = module(moment.before, moment.after, moment.period, None)
        given, found = ((tuple(one.shape), one.dtype) for one in (moment.after, weights))
        assert found == given, f"weights are {found} where {given} are given"
        assert torch.isfinite(weights).all(), "weights are not finite"
        for path, value in leaves(state).items():
            assert not value.is_complex(), f"{path} is complex; store a trailing axis of 2"
            assert not value.is_floating_point() or value.dtype.itemsize >= 4, f"{path} is {value.dtype}"
        for name, measure in metrics.items():
            assert measure.shape == () and not measure.requires_grad, f"metric {name} is not a detached scalar"
            assert torch.isfinite(measure), f"metric {name} is {measure}"

    def test_empty_weights_stay_finite(self, case: Case) -> None:
        module, moment = self.build(case), self.moments(torch.float32)[0]
        nothing = Period(moment.period.log_decay, torch.zeros_like(moment.period.write_scale), moment.period.reset)
        weights, _, metrics = module(torch.zeros_like(moment.before), torch.zeros_like(moment.after), nothing, None)
        assert torch.isfinite(weights).all(), "empty weights become something that is not finite"
        for name, value in metrics.items():
            assert torch.isfinite(value), f"metric {name} of empty weights is {value}"

    def test_rows_do_not_see_each_other(self, case: Case) -> None:
        module = self.lively(case).eval()
        together, _, _ = apply(module, self.moments(reset=2))
        for row in range(self.batch):
            alone, _, _ = apply(module, [moment.rows([row]) for moment in self.moments(reset=2)])
            for index, weights in enumerate(alone):
                assert_close(together[index][row : row + 1], weights, f"row {row} alone in period {index}")

    def test_a_reset_forgets_the_row(self, case: Case) -> None:
        """From a document's start on, a row is filtered as if it had just begun; the other rows go on."""
        module = self.lively(case).eval()
        moments = self.moments(reset=2)
        continued, _, _ = apply(module, moments)
        fresh, _, _ = apply(module, [moment.rows([1]) for moment in moments[2:]])
        for index, weights in enumerate(fresh):
            assert_close(continued[2 + index][1:2], weights, f"period {index} after the reset")

    def test_a_stored_state_goes_on(self, case: Case) -> None:
        """In another instance too: the state that is returned is all there is."""
        module, other, moments = self.double(case).eval(), self.double(case).eval(), self.moments()
        expected, final, _ = apply(module, moments)
        _, state, _ = apply(module, moments[:2])
        weights, later, _ = apply(other, moments[2:], mapped(lambda value: value.detach().clone(), state))
        assert_close(weights[-1], expected[-1], "weights after storing the state")
        assert_same_state(later, final, "after storing the state")

    def test_leaves_its_inputs_alone(self, case: Case) -> None:
        module, moments = self.double(case), self.moments()
        _, state, _ = apply(module, moments[:1])
        kept = mapped(torch.clone, state)
        apply(module, moments[1:2], state)
        for given, same in zip(moments, self.moments()):
            assert torch.equal(given.before, same.before) and torch.equal(given.after, same.after), "changed W"
        assert_same_state(state, kept, "the state that it was given", within=0.0)

    def test_gradients_pass_to_the_weights_and_reach_the_parameters(self, case: Case) -> None:
        module = self.lively(case).train()
        moments = self.moments()
        after = [moment.after.requires_grad_() for moment in moments]
        weights, _, _ = apply(module, moments)
        total = torch.stack([value.square().sum() for value in weights]).sum()
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for gradient in torch.autograd.grad(total, [*after, *parameters]):
            assert torch.isfinite(gradient).all(), "a gradient is not finite"
            assert gradient.abs().max() > 0, "no gradient reaches the weights after a period, or a parameter"

    def test_stays_fp32_under_autocast(self, case: Case) -> None:
        module, moments = self.build(case).eval(), self.moments(torch.float32)
        expected, _, _ = apply(module, moments)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, _, _ = apply(module, moments)
        assert found[-1].dtype == torch.float32, f"weights are {found[-1].dtype} under autocast"
        assert_close(found[-1], expected[-1], "weights under autocast", within=1e-4)


def apply(
    module: nn.Module, moments: list[Moment], state: State = None
) -> tuple[list[Tensor], State, dict[str, Tensor]]:
    """Weights of every period, the last state and the last metrics."""
    weights: list[Tensor] = []
    metrics: dict[str, Tensor] = {}
    for moment in moments:
        filtered, state, metrics = module(moment.before, moment.after, moment.period, state)
        weights.append(filtered)
    return weights, state, metrics
