"""M1: a NaN or an infinity in loss, gradient, weight or moment is caught in its step, before the optimiser; a skipped
step leaves the state as it was to the last bit, and the next injection is still caught."""

from __future__ import annotations

import math
import random

import pytest
import torch

from muse_core import fault_injection
from muse_core.selftest.promises.runs import StopAfter, events, loop_of, recipe_table
from muse_core.training.optimizers import gradient_numbers, norms, state_numbers

pytestmark = pytest.mark.promise("M1")

SKIPPED, UNDONE = ("loss", "gradient"), ("parameter", "moment")
BAD = (math.nan, math.inf, -math.inf)


class Injector:
    """A plan that damages every third step, sometimes two in a row, and keeps what it saw."""

    def __init__(self, seed, count):
        self.chance = random.Random(seed)
        self.count = count
        self.loop = None
        self.calls = 0
        self.next = 3
        self.due = None
        self.done = []
        """(kind, step, hash of the state before) of each injection."""
        self.updates = []
        """Steps that reached the weights, by call."""
        self.after = {}

    def plan(self):
        return {"batch": self.batch, "loss": self.loss, "gradient": self.gradient, "post_step": self.updated}

    def tensors(self):
        return {"parameter": list(self.loop.state.optimizers.names.values()),
                "moment": [t for t in self.loop.state.optimizers.held() if not t.requires_grad]}

    def batch(self, batch):
        self.calls += 1
        before = self.state()
        if self.done:
            self.after.setdefault(len(self.done) - 1, before)
        self.due = None
        if self.calls >= self.next and len(self.done) < self.count:
            kinds = [*SKIPPED, *(UNDONE if self.loop.state.at.accepted else ())]
            self.due = self.chance.choice(kinds)
            self.next = self.calls + self.chance.choice((1, 3, 3))
            self.done.append((self.due, self.loop.state.at.step, self.calls, before))
            if self.due in UNDONE:
                self.spoil(self.chance.choice(self.tensors()[self.due]))
        elif len(self.done) == self.count:
            self.loop.stop.left = 0
        return batch

    def state(self):
        tensors = [t.detach().clone() for t in self.loop.state.optimizers.held()]
        return tensors, self.loop.state.at.accepted

    def loss(self, result):
        if self.due == "loss":
            return result._replace(total=result.total * self.chance.choice(BAD))
        return result

    def gradient(self, model):
        if self.due == "gradient":
            self.spoil(self.chance.choice([p.grad for p in model.parameters() if p.grad is not None]))
        return model

    def spoil(self, tensor):
        with torch.no_grad():
            tensor.view(-1)[self.chance.randrange(tensor.numel())] = self.chance.choice(BAD)

    def updated(self, model):
        self.updates.append(self.calls)
        return model


def test_every_injection_is_caught_in_its_step(tmp_path, trial):
    count = trial.size(100, 1000)
    injector = Injector(trial.seed, count)
    recipe = recipe_table(
        tmp_path, train={"steps": 100_000, "warmup_steps": 0, "log_every": 1000}, checkpoint={"every": 2, "keep": 1}
    )
    with loop_of(tmp_path / "run", recipe, StopAfter(10**9)) as loop, fault_injection.installed(injector.plan()):
        injector.loop = loop
        loop.incidents.most = count
        loop.run()
        assert all(bool(torch.isfinite(t).all()) for t in loop.state.optimizers.held())
    assert len(injector.done) == count
    updated = set(injector.updates)
    answers = events(tmp_path / "run", "skip") + events(tmp_path / "run", "rollback")
    answered = sorted((row["sequence"], row["step"], row["event"]) for row in answers)
    assert len(answered) == count, "as many answers as injections"
    for number, ((kind, step, call, before), (_, at, answer)) in enumerate(zip(injector.done, answered)):
        where = f"injection {number} ({kind}) at step {step}"
        assert at == step, where
        assert call not in updated, f"{where} reached the optimiser"
        assert kind in SKIPPED or answer == "rollback", where
        if answer == "skip":
            after = injector.after[number]
            assert after[1] == before[1] and all(map(torch.equal, after[0], before[0])), f"{where}: the state moved"
    kinds = {kind: sum(one[0] == kind for one in injector.done) for kind in (*SKIPPED, *UNDONE)}
    assert all(kinds.values())
    trial.say(", ".join(f"{number} {kind}" for kind, number in kinds.items()) + ": all caught in their step")


@pytest.mark.parametrize(
    "bad", [complex(math.nan, 1), complex(1, math.nan), complex(math.inf, 0), complex(0, -math.inf)]
)
def test_real_or_imaginary_part_of_a_complex_number(bad):
    weight = torch.nn.Parameter(torch.ones(3, 3, dtype=torch.complex64))
    weight.grad = torch.ones_like(weight)
    weight.grad[1, 2] = bad
    assert gradient_numbers(norms([weight.grad]))["gradient_nonfinite"] == 1
    assert state_numbers([weight.grad, weight.detach()])["state_nonfinite"] == 1


def test_large_finite_weights_are_no_damage():
    assert state_numbers([torch.tensor([1e18, -1e18]), torch.zeros(0, 2)])["state_nonfinite"] == 0
    assert state_numbers([])["state_nonfinite"] == 0
