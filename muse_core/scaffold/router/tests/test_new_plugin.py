"""What the router chooses, and the conformance suites."""

from __future__ import annotations

import pytest
import torch
from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.testing import LayerSuite, PluginSuite, RouterSuite, build_component


class TestConformance(RouterSuite):
    name = "new-plugin"


class TestConformanceOfExperts(LayerSuite):
    name = "new-plugin-experts"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_the_best_experts_are_chosen() -> None:
    router = build_component("router", "new-plugin", experts=4, chosen=2)
    routing = router(torch.randn(2, 5, 16), {}, Tokens(torch.arange(5).expand(2, -1)))
    best = routing.logits.argsort(dim=-1, descending=True)[..., :2]
    assert torch.equal(routing.expert, best)


def test_refuses_to_choose_more_than_there_are() -> None:
    with pytest.raises(RecipeError, match="exceeds the number of experts, 2"):
        build_component("router", "new-plugin", experts=2, chosen=3)
