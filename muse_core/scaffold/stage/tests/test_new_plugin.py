"""What the stage trains, and the conformance suites."""

from __future__ import annotations

from muse_core.testing import PluginSuite, StageSuite, build_component


class TestConformance(StageSuite):
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_keeps_what_it_is_told_to_keep() -> None:
    stage = build_component("stage", "new-plugin", keep=["embedding.*"])
    assert not stage.trainable("embedding.weight")
    assert stage.trainable("blocks.0.attention.query.weight")
