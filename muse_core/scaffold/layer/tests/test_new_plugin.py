"""The convolution against its definition, and the conformance suites."""

from __future__ import annotations

import torch
from muse_core.contracts import Tokens
from muse_core.testing import LayerSuite, PluginSuite

from new_plugin.layer import documents, earlier


class TestConformance(LayerSuite):
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_reaches_back_within_a_document() -> None:
    stream = torch.tensor([[0.0, 0.0, 1.0, 2.0, 3.0, 4.0]])[..., None]
    tokens = Tokens(torch.tensor([[0, 1, 0, 1]]), resets=torch.tensor([[False, False, True, False]]))
    before = earlier(stream, documents(tokens, 2), lag=1, span=3)
    assert before.flatten().tolist() == [0.0, 1.0, 0.0, 3.0]
