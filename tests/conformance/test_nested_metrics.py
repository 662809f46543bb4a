"""The layer suite finds a layer that keeps a nested component's measures from it."""

from __future__ import annotations

import attrs
import pytest
from torch import nn

from muse_core.contracts import LayerOutput, Routing
from muse_core.testing.layers import LayerSuite


@attrs.frozen(kw_only=True)
class NoOptions:
    """Nothing to choose."""


class OfALayer(nn.Module):
    def forward(self, x):
        return LayerOutput(x, None, metrics={"size": x.detach().norm()})

    def update_statistics(self, metrics, progress):
        self.size = metrics.get("size")


class OfARouter(OfALayer):
    def forward(self, x):
        return Routing(x, x, x, metrics={"size": x.detach().norm()})


class OfAFilter(OfALayer):
    def forward(self, x):
        return x, None, {"size": x.detach().norm()}


class Right(nn.Module):
    prefix = "{name}/"

    def __init__(self, options, context):
        super().__init__()
        self.parts = nn.ModuleDict({"layer": OfALayer(), "router": OfARouter(), "filter": OfAFilter()})

    def forward(self, x, state, signals, tokens):
        size = x.detach().norm()
        for part in self.parts.values():
            part(x)
        return LayerOutput(x, None, metrics={self.prefix.format(name=name) + "size": size for name in self.parts})


class UsesTheWholePath(Right):
    prefix = "parts.{name}/"


class MergesThem(Right):
    prefix = ""


@pytest.mark.parametrize("implementation", [Right, UsesTheWholePath, MergesThem])
def test_measures_stand_under_the_name_of_the_module(complaint, implementation) -> None:
    found = complaint(LayerSuite, implementation, NoOptions, "test_what_is_nested_gets_its_metrics_back")
    if implementation is Right:
        assert found is None
    else:
        assert "no metric filter/size nor layer/size nor router/size: its component" in found
