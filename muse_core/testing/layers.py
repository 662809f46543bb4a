"""The conformance suite of layers and memory layers."""

from __future__ import annotations

from muse_core.testing.layer_suite.causality import LayerCausality
from muse_core.testing.layer_suite.contract import LayerContract
from muse_core.testing.layer_suite.execution import LayerExecution
from muse_core.testing.layer_suite.gradients import LayerGradients
from muse_core.testing.layer_suite.streaming import LayerStreaming


class LayerSuite(LayerContract, LayerCausality, LayerStreaming, LayerGradients, LayerExecution):
    """Everything a residual layer promises; see ``contracts.Layer``."""


class MemoryLayerSuite(LayerSuite):
    """The same for memory layers."""

    kind = "memory layer"
