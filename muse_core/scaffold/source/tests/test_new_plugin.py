"""The sums are right, and the conformance suites."""

from __future__ import annotations

from muse_core.testing import PluginSuite, SourceSuite, build_component


class TestConformance(SourceSuite):
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_the_sums_are_right_and_depend_on_the_draw() -> None:
    source, other = (build_component("source", "new-plugin", count=20, draw=draw) for draw in (0, 1))
    documents = [document.text for document in source.documents()]
    assert len(set(documents)) == 20
    for line in "".join(documents).splitlines():
        left, right, total = (int(word) for word in line.replace("+", "").replace("=", "").split())
        assert left + right == total
    assert documents != [document.text for document in other.documents()]
    assert source.fingerprint() != other.fingerprint()
