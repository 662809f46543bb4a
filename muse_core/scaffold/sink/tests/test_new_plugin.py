"""What the sink writes, and the conformance suites."""

from __future__ import annotations

from pathlib import Path

from muse_core.metrics.sinks import SinkContext
from muse_core.testing import PluginSuite, SinkSuite

from new_plugin.options import NewPluginOptions
from new_plugin.sink import NewPlugin


class TestConformance(SinkSuite):
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_a_resumed_run_goes_on_with_its_file(tmp_path: Path) -> None:
    for attempt, step in ((1, 10), (2, 20)):
        sink = NewPlugin(NewPluginOptions(), SinkContext(run=tmp_path, name="a", seed=0, recipe={}, attempt=attempt))
        sink.row({"event": "train", "stage": 0, "step": step, "loss": 2.5})
        sink.close()
    assert (tmp_path / "losses.csv").read_text() == "stage,step,loss\n0,10,2.5\n0,20,2.5\n"
