"""Conformance suites that anyone's components can inherit, and what builds a component in a small context.

Names are imported when they are asked for, so that starting pytest does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

WHERE = {
    "build_component": "building",
    "registry_with": "loose",
    "small_context": "building",
    "ExternalLayerSuite": "external",
    "FilterSuite": "filters",
    "InitializerSuite": "initializers",
    "KernelBackendSuite": "kernel_backends",
    "LayerSuite": "layers",
    "ModelSuite": "models",
    "MonitorSuite": "monitors",
    "OptimizerSuite": "optimizers",
    "PluginSuite": "distributions",
    "PotentialSuite": "potentials",
    "RouterSuite": "routers",
    "ScheduleSuite": "schedules",
    "SinkSuite": "sinks",
    "SourceSuite": "sources",
    "StageSuite": "stages",
    "Suite": "suite",
    "TokenizerSuite": "tokenizers",
}
"""Public name → module of this package."""

__all__ = sorted(WHERE)


def __getattr__(name: str) -> Any:
    if name not in WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{WHERE[name]}"), name)
