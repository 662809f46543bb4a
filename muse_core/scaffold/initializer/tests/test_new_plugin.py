"""The distribution of the values, and the conformance suites."""

from __future__ import annotations

import pytest
import torch
from muse_core.errors import RecipeError
from muse_core.testing import InitializerSuite, PluginSuite, build_component


class TestConformance(InitializerSuite):
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_values_have_the_scale_and_the_cut() -> None:
    fill = build_component("initializer", "new-plugin", gain=2.0, cut=3.0)
    value = fill(torch.zeros(400, 100), role="matrix", generator=torch.Generator().manual_seed(0))
    assert value.std().item() == pytest.approx(0.2, rel=0.03)
    assert value.abs().max() <= 0.6


def test_refuses_vectors() -> None:
    with pytest.raises(RecipeError, match="narrow the pattern"):
        build_component("initializer", "new-plugin")(torch.zeros(4), role="vector", generator=torch.Generator())
