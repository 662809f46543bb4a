"""The average against its definition, and the conformance suites."""

from __future__ import annotations

import pytest
import torch
from muse_leaky_average.layer import leaky_averages

from muse_core.errors import RecipeError
from muse_core.testing import LayerSuite, PluginSuite, build_component


class TestLeakyAverage(LayerSuite):
    kind = "memory layer"
    name = "leaky-average"


class TestDistribution(PluginSuite):
    distribution = "muse-leaky-average"


def test_follows_its_definition() -> None:
    values = torch.randn(2, 9, 3, 4, dtype=torch.float64)
    keep = torch.tensor([0.1, 0.5, 0.99], dtype=torch.float64)
    average = torch.randn(2, 3, 4, dtype=torch.float64)
    computed = leaky_averages(values, keep, average, None)
    for token in range(9):
        average = keep[:, None] * average + (1 - keep)[:, None] * values[:, token]
        torch.testing.assert_close(computed[:, token], average)


def test_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(RecipeError, match="does not divide the width 16"):
        build_component("memory layer", "leaky-average", heads=5)


def test_refuses_spans_of_one_token() -> None:
    with pytest.raises(RecipeError, match="spans must be"):
        build_component("memory layer", "leaky-average", spans=[1.0, 64.0])
