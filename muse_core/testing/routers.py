"""The conformance suite of routers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muse_core.contracts import Routing
from muse_core.testing.building import resolve
from muse_core.testing.cases import Case
from muse_core.testing.execution import ExecutionSuite, assert_near_fp32
from muse_core.testing.modules import gradients_of, weighted
from muse_core.testing.sequences import Sequence, assert_close, cuts, make_tokens, random_sequence
from muse_core.testing.signals import needed_shapes

PERTURBATION = 1e3


class RouterSuite(ExecutionSuite):
    """Experts per token from the past and the token alone; see ``contracts.Router``."""

    kind = "router"
    width, experts, length = 16, 4, 24

    def build(self, case: Case, **changes: Any) -> nn.Module:
        given = {"width": self.width, "experts": self.destinations(case), "signals": self.signals(case)}
        module: nn.Module = super().build(case, **(given | changes))
        return module

    def destinations(self, case: Case) -> int:
        """E; a router with a fixed number of destinations says so by ``destinations`` of its options class."""
        return getattr(self.component(case).options, "destinations", self.experts)

    def signals(self, case: Case) -> dict[str, tuple[int, ...]]:
        options = resolve(case.kind, case.name, case.options, self.registry()).options
        return needed_shapes(options, self.registry(), self.width)

    def sequence(self, case: Case, dtype: torch.dtype = torch.float64) -> Sequence:
        return random_sequence(batch=3, length=self.length, width=self.width, signals=self.signals(case), dtype=dtype)

    def outputs(self, case: Case, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        return decided(route(module, self.sequence(case, dtype)))

    def inputs(self, case: Case, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        sequence = self.sequence(case, dtype)
        return {"x": sequence.x} | sequence.signals

    def call(self, case: Case, module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        signals = {name: value for name, value in inputs.items() if name != "x"}
        tokens = make_tokens(3, self.length)
        routing = route(module, Sequence(x=inputs["x"], signals=signals, tokens=tokens))
        return decided(routing) | {f"loss {name}": value for name, value in routing.losses.items()}

    def test_returns_experts_weights_and_logits(self, case: Case) -> None:
        routing = route(self.build(case), self.sequence(case, torch.float32))
        assert isinstance(routing, Routing), f"forward returned {type(routing).__name__}, not contracts.Routing"
        expert, weight = routing.expert, routing.weight
        shapes = f"expert is {tuple(expert.shape)} and weight {tuple(weight.shape)} for tokens {(3, self.length)}"
        assert expert.shape == weight.shape and expert.shape[:2] == (3, self.length), shapes
        assert not expert.is_floating_point(), f"expert is {expert.dtype}, not whole numbers"
        assert expert.min() >= -1 and expert.max() < self.destinations(case), "an expert that there is not"
        assert (weight[expert < 0] == 0).all(), "an unused slot has a weight"
        assert (weight >= 0).all() and torch.isfinite(weight).all(), "a weight is negative or not finite"
        assert (expert >= 0).any(dim=-1).all(), "a token has no expert"
        chosen = expert.sort(dim=-1).values
        twice = (chosen[..., 1:] == chosen[..., :-1]) & (chosen[..., 1:] >= 0)
        assert not twice.any(), "a token has one expert twice"
        due = (3, self.length, self.destinations(case))
        assert routing.logits.shape == due, f"logits are {tuple(routing.logits.shape)} where {due} are due"
        for name, loss in routing.losses.items():
            assert loss.shape == () and torch.isfinite(loss), f"loss {name} is not a finite scalar"

    def test_later_tokens_and_other_rows_do_not_matter(self, case: Case) -> None:
        """In training too: quantiles of the present batch would leak."""
        for training in (False, True):
            module, sequence = self.lively(case).train(training), self.sequence(case)
            base = decided(route(module, sequence))
            for token in (0, 1, self.length // 2, self.length - 1):
                x = sequence.x.clone()
                x[1, token] += PERTURBATION
                moved = decided(route(module, Sequence(x=x, signals=sequence.signals, tokens=sequence.tokens)))
                for name, value in moved.items():
                    assert_close(value[1, :token], base[name][1, :token], f"{name} before the change at token {token}")
                    assert_close(value[[0, 2]], base[name][[0, 2]], f"{name} in other rows")

    def test_pieces_give_what_the_whole_gives(self, case: Case) -> None:
        module, sequence = self.lively(case).eval(), self.sequence(case)
        pieces = [decided(route(module, sequence.piece(start, stop))) for start, stop in cuts(self.length, (5, 1))]
        for name, value in decided(route(module, sequence)).items():
            assert_close(torch.cat([piece[name] for piece in pieces], dim=1), value, f"{name} in pieces")

    def test_bf16_autocast_stays_near_fp32(self, case: Case) -> None:
        module, sequence = self.build(case).eval(), self.sequence(case, torch.bfloat16)
        expected = route(module, sequence.to(torch.float32))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = route(module, sequence)
        assert_near_fp32(found.logits, expected.logits, "logits")

    def test_gradients_are_finite_and_something_trains(self, case: Case) -> None:
        module = self.lively(case).train()
        routing = route(module, self.sequence(case))
        total = weighted({"weight": routing.weight, "logits": routing.logits}) + sum(routing.losses.values())
        gradients = gradients_of(total, module)
        alive = [gradient for gradient in gradients.values() if gradient is not None and gradient.abs().max() > 0]
        assert alive or not gradients, "no parameter has a gradient"
        assert all(torch.isfinite(gradient).all() for gradient in alive), "a gradient is not finite"


def route(module: nn.Module, sequence: Sequence) -> Routing:
    routing: Routing = module(sequence.x, dict(sequence.signals), sequence.tokens)
    return routing


def decided(routing: Routing) -> dict[str, Tensor]:
    """What the experts see."""
    return {"expert": routing.expert, "weight": routing.weight, "logits": routing.logits}
