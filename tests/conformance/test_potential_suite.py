"""The potential suite passes a right potential and catches wrong ones."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

from muse_core.component import Component
from muse_core.testing.loose import registry_with
from muse_core.testing.potentials import PotentialSuite


@attrs.frozen(kw_only=True)
class WellOptions:
    """V = W x, Γ = softplus(U x)."""


class Right(nn.Module):
    def __init__(self, options, context):
        super().__init__()
        self.energy = nn.Linear(context.width, context.heads)
        self.rate = nn.Linear(context.width, context.heads)

    def forward(self, x, signals, tokens):
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast("cpu", enabled=False):
            x = x.to(dtype)
            return self.seen(x) @ self.energy.weight.T + self.energy.bias, self.decay(self.rate(x))

    def seen(self, x):
        return x

    def decay(self, raw):
        return nn.functional.softplus(raw)


class Amplifies(Right):
    def decay(self, raw):
        return raw


class SeesItsNeighbour(Right):
    def seen(self, x):
        return x.cumsum(dim=1)


class HasADeadDecay(Right):
    def decay(self, raw):
        return torch.ones_like(raw)


class RoundsUnderAutocast(Right):
    def forward(self, x, signals, tokens):
        return self.energy(x), nn.functional.softplus(self.rate(x))


class HasOneHead(Right):
    def decay(self, raw):
        return nn.functional.softplus(raw[..., :1])


class TestRight(PotentialSuite):
    name = "right"

    @classmethod
    def registry(cls):
        return registry_with(("potential", Component("right", options=WellOptions, implementation=f"{__name__}:Right")))


CAUGHT = [
    (Amplifies, "test_decay_is_never_negative"),
    (SeesItsNeighbour, "test_a_token_sees_no_other_token"),
    (SeesItsNeighbour, "test_pieces_give_what_the_whole_gives"),
    (HasADeadDecay, "test_gradients_reach_every_parameter"),
    (RoundsUnderAutocast, "test_stays_fp32_under_autocast"),
    (HasOneHead, "test_returns_energy_and_decay_by_head"),
]


@pytest.mark.parametrize(("wrong", "test"), CAUGHT, ids=[f"{wrong.__name__}-{test[5:]}" for wrong, test in CAUGHT])
def test_catches(complaint, wrong, test) -> None:
    assert complaint(PotentialSuite, wrong, WellOptions, test), f"{test} lets {wrong.__name__} pass"


def test_every_check_of_its_own_is_shown_something_wrong(tests_of) -> None:
    own = {name for name in tests_of(PotentialSuite) if name in vars(PotentialSuite)}
    assert own == {test for _, test in CAUGHT}
