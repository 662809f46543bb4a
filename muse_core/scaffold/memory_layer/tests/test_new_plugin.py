"""What the memory recalls, and the conformance suites."""

from __future__ import annotations

import pytest
import torch
from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.testing import LayerSuite, PluginSuite, build_component


class TestConformance(LayerSuite):
    kind = "memory layer"
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_forgets_at_the_start_of_a_document() -> None:
    layer = build_component("memory layer", "new-plugin", heads=2).eval()
    x, positions = torch.randn(1, 6, 16), torch.arange(6)[None]
    resets = torch.tensor([[False, False, False, True, False, False]])
    joined = layer(x, None, {}, Tokens(positions, resets=resets)).update[:, 3:]
    alone = layer(x[:, 3:], None, {}, Tokens(positions[:, :3])).update
    torch.testing.assert_close(joined, alone)


def test_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(RecipeError, match="does not divide the width 16"):
        build_component("memory layer", "new-plugin", heads=3)
