"""The router suite passes a right router and catches wrong ones."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

from muse_core.component import Component
from muse_core.contracts import Routing
from muse_core.testing.loose import registry_with
from muse_core.testing.routers import RouterSuite


@attrs.frozen(kw_only=True)
class TopOptions:
    """The two experts with the largest logits."""


class Right(nn.Module):
    def __init__(self, options, context):
        super().__init__()
        self.logits = nn.Linear(context.width, context.experts, bias=False)

    def forward(self, x, signals, tokens):
        logits = self.scored(self.logits(x))
        value, expert = logits.topk(2, dim=-1)
        weight = value.softmax(dim=-1)
        return self.chosen(expert, weight, logits)

    def scored(self, logits):
        return logits

    def chosen(self, expert, weight, logits):
        return Routing(expert, weight, logits)


class UsesTheBatch(Right):
    def scored(self, logits):
        return logits - logits.mean(dim=(0, 1)) if self.training else logits


class UsesTheSequence(Right):
    def scored(self, logits):
        return logits - logits.mean(dim=1, keepdim=True)


class WeighsUnusedSlots(Right):
    def chosen(self, expert, weight, logits):
        return Routing(torch.where(weight < 0.3, -1, expert), weight, logits)


class ChoosesTwice(Right):
    def chosen(self, expert, weight, logits):
        return Routing(expert[..., :1].expand(-1, -1, 2), weight, logits)


class RoundsItsScores(Right):
    def scored(self, logits):
        return logits.round() if torch.is_autocast_enabled("cpu") else logits


class IsDead(Right):
    def chosen(self, expert, weight, logits):
        return Routing(expert, weight.detach(), logits.detach())


class TestRight(RouterSuite):
    name = "right"

    @classmethod
    def registry(cls):
        return registry_with(("router", Component("right", options=TopOptions, implementation=f"{__name__}:Right")))


CAUGHT = [
    (UsesTheBatch, "test_later_tokens_and_other_rows_do_not_matter"),
    (UsesTheSequence, "test_pieces_give_what_the_whole_gives"),
    (WeighsUnusedSlots, "test_returns_experts_weights_and_logits"),
    (ChoosesTwice, "test_returns_experts_weights_and_logits"),
    (RoundsItsScores, "test_bf16_autocast_stays_near_fp32"),
    (IsDead, "test_gradients_are_finite_and_something_trains"),
]


@pytest.mark.parametrize(("wrong", "test"), CAUGHT, ids=[f"{wrong.__name__}-{test[5:]}" for wrong, test in CAUGHT])
def test_catches(complaint, wrong, test) -> None:
    assert complaint(RouterSuite, wrong, TopOptions, test), f"{test} lets {wrong.__name__} pass"


def test_every_check_of_its_own_is_shown_something_wrong(tests_of) -> None:
    own = {name for name in tests_of(RouterSuite) if name in vars(RouterSuite)}
    assert own == {test for _, test in CAUGHT}
