"""The conformance suite of optimizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muse_core.recipe.schema import Train
from muse_core.testing.building import resolve
from muse_core.testing.cases import Case
from muse_core.testing.suite import Suite
from muse_core.training.optimizers import Optimizers, make_optimizers


class EveryRole(nn.Module):
    """Parameters of every role: an embedding, a matrix with its bias, a stack of matrices and dynamics."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embedding = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 6)
        self.stack = nn.Parameter(torch.zeros(2, 4, 3))
        self.dynamics = nn.Module()
        self.dynamics.rate = nn.Parameter(torch.zeros(4))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)


def gradients(model: nn.Module, seed: int) -> None:
    """Draw a gradient for every parameter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


class OptimizerSuite(Suite):
    """An update rule over named parameters with roles; see ``contracts.Optimizer``. Parameters are real: a complex
    quantity crosses every contract as a trailing axis of 2."""

    kind = "optimizer"
    learning_rate = 0.01
    """Peak rate that the rule is built with."""

    def optimizers(self, case: Case, model: nn.Module, trainable: str = "") -> Optimizers:
        """Of the parameters whose names begin so."""
        use = resolve(case.kind, case.name, case.options, self.registry())
        train = Train(optimizer=use, learning_rate=self.learning_rate, weight_decay=0.1)
        return make_optimizers(model, train, lambda name: name.startswith(trainable))

    def updated(self, model: nn.Module, optimizers: Optimizers, seeds: range) -> dict[str, Tensor]:
        """The weights after an update for every seed."""
        for seed in seeds:
            gradients(model, seed)
            optimizers.step(0.5)
        return {name: value.detach().clone() for name, value in model.named_parameters()}

    def test_updates_every_parameter(self, case: Case) -> None:
        model = EveryRole()
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        after = self.updated(model, self.optimizers(case, model), range(1))
        for name, value in after.items():
            assert torch.isfinite(value).all() and not torch.equal(value, before[name]), f"{name} is not updated"

    def test_follows_a_schedule_down_to_nothing(self, case: Case) -> None:
        model = EveryRole()
        optimizers = self.optimizers(case, model)
        before = self.updated(model, optimizers, range(2))
        gradients(model, 2)
        optimizers.step(0.0)
        for name, value in model.named_parameters():
            assert torch.equal(value, before[name]), f"{name} moves at a rate of 0: the step ignores group['lr']"

    def test_may_be_given_a_part_of_the_parameters(self, case: Case) -> None:
        for part in ("embedding", "inner.weight", "inner.bias", "dynamics"):
            model = EveryRole()
            before = {name: value.detach().clone() for name, value in model.named_parameters()}
            after = self.updated(model, self.optimizers(case, model, part), range(2))
            moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
            assert moved == {name for name in after if name.startswith(part)}, f"given {part}, it moves {sorted(moved)}"

    def test_leaves_a_parameter_without_a_gradient(self, case: Case) -> None:
        model = EveryRole()
        optimizers = self.optimizers(case, model)
        before = self.updated(model, optimizers, range(1))
        gradients(model, 1)
        model.inner.weight.grad = None
        optimizers.step(1.0)
        assert torch.equal(model.inner.weight, before["inner.weight"]), "a parameter without a gradient moves"

    def test_keeps_what_it_says_it_keeps(self, case: Case) -> None:
        model = EveryRole()
        optimizers = self.optimizers(case, model)
        due = {key: (value.shape, value.dtype) for key, value in optimizers.expected_tensors().items()}
        assert optimizers.state_dict() == {}, "it keeps something before the first update"
        self.updated(model, optimizers, range(2))
        held = {key: (value.shape, value.dtype) for key, value in optimizers.state_dict().items()}
        others = sorted(key for key in held | due if held.get(key) != due.get(key))
        assert not others, f"kept() says other names, shapes or types than are held: {others}"

    def test_state_put_back_gives_the_same_updates_to_the_last_bit(self, case: Case) -> None:
        model, other = EveryRole(), EveryRole()
        first = self.optimizers(case, model)
        weights = self.updated(model, first, range(3))
        kept = {name: value.clone() for name, value in first.state_dict().items()}
        expected = self.updated(model, first, range(3, 6))
        other.load_state_dict(weights)
        second = self.optimizers(case, other)
        second.load_state_dict(kept)
        for name, value in self.updated(other, second, range(3, 6)).items():
            assert torch.equal(value, expected[name]), f"{name} differs after a resumption: state outside kept()"

    def test_forgets_its_moments(self, case: Case) -> None:
        model, other = EveryRole(), EveryRole()
        first = self.optimizers(case, model)
        other.load_state_dict(self.updated(model, first, range(3)))
        first.forget()
        expected = self.updated(other, self.optimizers(case, other), range(3, 5))
        for name, value in self.updated(model, first, range(3, 5)).items():
            assert torch.equal(value, expected[name]), f"{name} remembers what was forgotten: state outside the moments"

    def test_draws_nothing_from_the_global_generator(self, case: Case) -> None:
        before = torch.random.get_rng_state()
        model = EveryRole()
        state = torch.random.get_rng_state()
        self.updated(model, self.optimizers(case, model), range(2))
        assert torch.equal(torch.random.get_rng_state(), state), "moved torch's global generator"
        torch.random.set_rng_state(before)

    def test_descends(self, case: Case) -> None:
        """The squared distance to fixed values falls to less than a half within 2,000 updates: a rule of signs may well
        take a tenth of the recipe's rate."""
        model, target = EveryRole(), {name: torch.zeros_like(value) for name, value in EveryRole().named_parameters()}
        optimizers = self.optimizers(case, model)

        def distance() -> Any:
            return sum((value - target[name]).square().sum() for name, value in model.named_parameters())

        start = float(distance().detach())
        for _ in range(2_000):
            optimizers.zero_grad()
            distance().backward()
            optimizers.step(1.0)
            if float(distance().detach()) < start / 2:
                return
        reached = float(distance().detach()) / start
        raise AssertionError(f"a squared distance is {reached:.3g} of what it was after 2,000 updates downhill")
