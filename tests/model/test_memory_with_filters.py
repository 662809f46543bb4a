"""The memory layer with a filter, together: distributions that never import each other meet in a recipe."""

import pytest
import torch

from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.recipe import check_table
from muse_core.testing import build_component
from muse_core.testing.layers import MemoryLayerSuite


class TestHebbianRuleWithSnr(MemoryLayerSuite):
    name = "fast-weights"
    options = {"rule": "hebbian", "heads": 2, "filters": ["snr"], "period": 4, "initial_decay": [0.05, 0.5]}
    test_compiles = None  # seconds per segment; one test below compiles two


class TestDeltaRuleWithSnrTwice(MemoryLayerSuite):
    name = "fast-weights"
    options = {"filters": [{"use": "snr", "threshold": 1.0, "gamma_boost": 4.0}, "snr"], "period": 8}
    test_compiles = None


def test_the_filter_acts_and_its_measures_come_out():
    tokens = Tokens(torch.arange(20).expand(2, -1))
    x = torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(0))
    plain, filtered = (
        build_component("memory layer", "fast-weights", heads=2, period=8, filters=filters)(x, None, {}, tokens)
        for filters in ([], ["snr"])
    )
    torch.testing.assert_close(filtered.update[:, :8], plain.update[:, :8])
    assert (filtered.update[:, 8:] - plain.update[:, 8:]).abs().max() > 1e-3
    assert 0 < filtered.metrics["snr/share_filtered"] < 1


@torch.no_grad()
def test_segments_between_periods_compile():
    layer = build_component("memory layer", "fast-weights", {"heads": 2, "period": 8, "filters": ["snr"]}, publish=())
    x, tokens = torch.randn(2, 12, 16), Tokens(torch.arange(12).expand(2, -1))
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)(x, None, {}, tokens)
    torch.testing.assert_close(compiled.update, layer(x, None, {}, tokens).update, rtol=1e-4, atol=1e-4)


def test_a_period_that_never_ends_inside_a_sequence_is_refused():
    memory = {"use": "fast-weights", "period": 64, "filters": ["snr"]}
    table = {"name": "test", "train": {"sequence_length": 64}, "model": {"width": 48, "depth": 1, "block": [memory]}}
    with pytest.raises(RecipeError, match="the filters would never act"):
        check_table(table)
