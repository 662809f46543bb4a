"""The recursion against a dense inverse, and the conformance suites."""

from __future__ import annotations

import torch
from muse_core.testing import KernelBackendSuite, PluginSuite

from new_plugin.recursion import causal_resolvent_diagonal


class TestConformance(KernelBackendSuite):
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_the_last_entry_is_that_of_the_dense_inverse() -> None:
    diagonal = torch.randn(6, dtype=torch.float64)
    energy = 0.3 + 0.2j
    _, last = causal_resolvent_diagonal(diagonal, 1.0, 1.0, energy)
    matrix = torch.diag(diagonal - energy) + torch.diag(torch.ones(5), 1) + torch.diag(torch.ones(5), -1)
    torch.testing.assert_close(last, torch.linalg.inv(matrix)[-1, -1])
