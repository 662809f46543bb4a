"""The causality gate's checks of a finished run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import muse_core
from muse_core.contracts import LayerOutput, Tokens
from muse_core.errors import PluginError
from muse_core.evaluation.suites import evaluate
from muse_core.evaluation.suites.causality import CHECKS
from muse_core.evaluation.suites.subject import Subject

pytestmark = pytest.mark.usefixtures("one_thread")


class LeaksOnceItHasMoved(nn.Module):
    """Adds the next token once its weight is no longer what it began as."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> LayerOutput:
        step = self.inner(x, state, signals, tokens)
        if not self.weight:
            return step
        later = torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
        return step._replace(update=step.update + self.weight * later)


@pytest.fixture
def subject(finished_run: Path) -> Subject:
    return Subject(setup=muse_core.load(finished_run).setup)


def rows_of(subject: Subject) -> list[dict[str, Any]]:
    return evaluate(subject, ["causality"])["causality"]


def test_a_causal_run_passes_every_check_and_is_left_as_it_was(subject: Subject) -> None:
    before, random = copy.deepcopy(subject.setup.model.state_dict()), torch.get_rng_state()
    assert rows_of(subject) == [{"check": check, "passed": True} for check in CHECKS]
    assert all(torch.equal(value, before[name]) for name, value in subject.setup.model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in subject.setup.model.parameters())


def test_a_layer_that_leaks_with_the_weights_of_now_is_named(subject: Subject) -> None:
    block = subject.setup.model.blocks[0]
    name = block.sites[0].name
    layer = LeaksOnceItHasMoved(block.get_submodule(name))
    block.add_module(name, layer)
    exact, *own = rows_of(subject)[1:]
    assert exact["passed"] and own[0]["passed"]
    with torch.no_grad():
        layer.weight.fill_(0.5)
    for row in rows_of(subject)[1:]:
        assert row["passed"] is False and row["layer"] == f"blocks.0.{name}" and "later token" in row["leak"]


def test_weights_that_are_no_numbers_are_not_judged(subject: Subject) -> None:
    name, parameter = next(iter(subject.setup.model.named_parameters()))
    with torch.no_grad():
        parameter.flatten()[0] = torch.nan
    (row,) = rows_of(subject)
    assert row["skipped"].startswith(f"{name} has entries that are no finite numbers")


def test_a_check_that_cannot_be_made_says_why(subject: Subject) -> None:
    class Without(type(subject.setup)):
        def _exact_leak(self):
            raise PluginError("it has no form in float64")

    setup = Without(**{field.name: getattr(subject.setup, field.name) for field in attrs.fields(type(subject.setup))})
    exact, *own = rows_of(attrs.evolve(subject, setup=setup))
    assert exact == {"check": CHECKS[0], "skipped": "it cannot be made: it has no form in float64"}
    assert all(row["passed"] for row in own)
