"""How far the model looks, and the conformance suites."""

from __future__ import annotations

import torch
from muse_core.testing import ModelSuite, PluginSuite, build_component


class TestConformance(ModelSuite):
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_sees_no_further_than_its_span() -> None:
    model = build_component("model", "new-plugin", span=3).eval()
    ids = torch.arange(10)[None]
    changed = ids.clone()
    changed[0, 0] = 99
    same = (model(ids).hidden == model(changed).hidden).all(dim=-1)[0]
    assert same.tolist() == [False] * 3 + [True] * 7
