"""The bounds of the potential, and the conformance suites."""

from __future__ import annotations

import torch
from muse_core.contracts import Tokens
from muse_core.testing import PluginSuite, PotentialSuite, build_component


class TestConformance(PotentialSuite):
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_stays_within_its_bound_and_starts_with_its_decay() -> None:
    potential = build_component("potential", "new-plugin", bound=2.0, initial_decay=0.25)
    tokens = Tokens(torch.arange(5)[None])
    energy, _ = potential(100 * torch.randn(1, 5, 16), {}, tokens)
    _, decay = potential(torch.zeros(1, 5, 16), {}, tokens)
    assert energy.abs().max() <= 2.0
    torch.testing.assert_close(decay, torch.full_like(decay, 0.25))
