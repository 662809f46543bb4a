"""The filter suite passes a right filter and catches wrong ones."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

from muse_core.component import Component
from muse_core.testing.filters import FilterSuite
from muse_core.testing.loose import registry_with


@attrs.frozen(kw_only=True)
class ShrinkOptions:
    """Pulls weights towards their running mean over periods."""


class Right(nn.Module):
    def __init__(self, options, context):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.3))

    def forward(self, before, after, period, state):
        mean = torch.zeros_like(after) if state is None else self.given(state)
        mean = self.restarted(mean, period.reset[:, None, None, None])
        mean = mean + 0.5 * (self.read(after) - mean)
        scale = self.size(after)
        weights = after + self.share.to(after.dtype) * (mean - after) * scale / (scale + 1)
        return self.written(weights, after), {"mean": mean}, {"size": scale.mean().detach()}

    def given(self, state):
        return state["mean"]

    def restarted(self, mean, starts):
        return mean.masked_fill(starts, 0.0)

    def read(self, after):
        return after

    def size(self, after):
        return after.square().mean(dim=(-2, -1), keepdim=True)

    def written(self, weights, after):
        return weights


class ForgetsItsState(Right):
    def given(self, state):
        return self.__dict__.setdefault("first", state["mean"])


class IgnoresDocuments(Right):
    def restarted(self, mean, starts):
        return mean


class MixesRows(Right):
    def size(self, after):
        return after.square().mean()


class DividesByNothing(Right):
    def size(self, after):
        return after.square().mean(dim=(-2, -1), keepdim=True) / after.abs().amax(dim=(-2, -1), keepdim=True)


class WritesInPlace(Right):
    def read(self, after):
        after.detach().mul_(0.5)
        return after


class CutsTheGradient(Right):
    def written(self, weights, after):
        return weights.detach() + 0 * self.share


class Rounds(Right):
    def written(self, weights, after):
        return weights.bfloat16().to(weights.dtype) if torch.is_autocast_enabled("cpu") else weights


class Transposes(Right):
    def written(self, weights, after):
        return weights.transpose(-1, -2)


class TestRight(FilterSuite):
    name = "right"

    @classmethod
    def registry(cls):
        return registry_with(("filter", Component("right", options=ShrinkOptions, implementation=f"{__name__}:Right")))


CAUGHT = [
    (ForgetsItsState, "test_a_stored_state_goes_on"),
    (IgnoresDocuments, "test_a_reset_forgets_the_row"),
    (MixesRows, "test_rows_do_not_see_each_other"),
    (DividesByNothing, "test_empty_weights_stay_finite"),
    (WritesInPlace, "test_leaves_its_inputs_alone"),
    (CutsTheGradient, "test_gradients_pass_to_the_weights_and_reach_the_parameters"),
    (Rounds, "test_stays_fp32_under_autocast"),
    (Transposes, "test_returns_weights_state_and_metrics"),
]


@pytest.mark.parametrize(("wrong", "test"), CAUGHT, ids=[f"{wrong.__name__}-{test[5:]}" for wrong, test in CAUGHT])
def test_catches(complaint, wrong, test) -> None:
    assert complaint(FilterSuite, wrong, ShrinkOptions, test), f"{test} lets {wrong.__name__} pass"


def test_every_check_of_its_own_is_shown_something_wrong(tests_of) -> None:
    own = {name for name in tests_of(FilterSuite) if name in vars(FilterSuite)}
    assert own == {test for _, test in CAUGHT}
