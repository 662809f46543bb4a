"""M6: a planted leak of one token is caught every time, and a probe that raises or returns NaN harms nothing."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn

from muse_core.component import Use
from muse_core.contracts import Verdict
from muse_core.evaluation.causality import exact_leak
from muse_core.selftest.promises.runs import events, loop_of, losses, opened, recipe_table
from muse_core.training.monitors import MonitorGroup

pytestmark = pytest.mark.promise("M6")


class Leaky(nn.Module):
    """Adds a little of the next token to one layer's update, at every token or at one."""

    def __init__(self, inner, strength, position):
        super().__init__()
        self.inner, self.position = inner, position
        self.strength = nn.Parameter(torch.tensor([strength]))

    def forward(self, x, state, signals, tokens):
        step = self.inner(x, state, signals, tokens)
        seen = torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
        if self.position is not None and x.shape[1] > self.position + 1:
            seen = torch.zeros_like(x).index_copy(1, torch.tensor([self.position]), seen[:, [self.position]])
        return step._replace(update=step.update + self.strength * seen)


def test_every_planted_leak_is_caught(tmp_path, trial):
    chance = random.Random(trial.seed)
    count = trial.size(12, 300)
    with opened(tmp_path / "run", recipe_table(tmp_path)) as (_, setup, _):
        blocks = [
            (block, name) for block in setup.model.blocks for name, _ in block.named_children()
            if name in ("attention", "feed-forward")
        ]
        assert len(blocks) == 4
        model = setup.model.double()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        assert exact_leak(model, 32, ()) is None
        for number in range(count):
            model.load_state_dict(state)
            block, name = chance.choice(blocks)
            # Tokens next to those that the check changes; a leak of strength zero sleeps until it is woken.
            strength, position = chance.choice([0.0, 1e-7, 1e-4, 1.0]), chance.choice([None, 11, 22])
            layer = block.get_submodule(name)
            block.add_module(name, Leaky(layer, strength, position).double())
            leak = exact_leak(model, 32, (), seed=number)
            block.add_module(name, layer)
            assert leak is not None and leak.kind == "later token", (trial.seed, number, name, strength, position)
    trial.say(f"{count} leaks of one token, all caught")


PROBING = Use(kind="safety monitor", name="p", distribution="d", version="1", implementation="", options=None)


class Probing:
    """A monitor whose probe does what it should not."""

    def __init__(self, answer):
        self.answer = answer

    def measure(self, moment, values):
        return {}

    def judge(self, step, floats):
        return Verdict()

    def wants_probe(self, step, floats):
        return step % 2 == 0

    def probe(self, model):
        torch.rand(100)
        model(torch.zeros(1, 8, dtype=torch.long), None, None)
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"x": self.answer}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_probes_that_fail_leave_every_loss_as_it_was(tmp_path, trial):
    recipe = recipe_table(tmp_path, train={"steps": 10})
    for name, answer in (("without", None), ("raising", ZeroDivisionError("oh")), ("nan", math.nan)):
        monitors = None if answer is None else MonitorGroup([(PROBING, Probing(answer))])
        with loop_of(tmp_path / name, recipe, monitors=monitors) as loop:
            loop.run()
        assert losses(tmp_path / name) == losses(tmp_path / "without")
    warned = events(tmp_path / "raising", "warning")
    assert [row["step"] for row in warned] == [2, 4, 6, 8, 10] and "ZeroDivisionError: oh" in warned[0]["reason"]
    trial.say("raising and NaN probes change no bit of any loss")
