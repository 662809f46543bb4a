"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_gate_ablation.options import GateAblationOptions, GateCollapseOptions, PolarisationOptions


@hookimpl
def muse_layers() -> Iterable[Component]:
    yield Component("polarisation", options=PolarisationOptions, implementation="muse_gate_ablation.layer:Polarisation")


@hookimpl
def muse_safety_monitors() -> Iterable[Component]:
    yield Component(
        "gate-ablation",
        options=GateAblationOptions,
        implementation="muse_gate_ablation.monitor:GateAblation",
        former_names=("gates",),
    )
    yield Component(
        "gate-collapse", options=GateCollapseOptions, implementation="muse_gate_ablation.collapse:GateCollapse"
    )
