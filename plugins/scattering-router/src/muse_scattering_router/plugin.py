"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_scattering_router.options import ActOptions, ExpertsOptions, RoutingMonitorOptions, ScatteringOptions


@hookimpl
def muse_layers() -> Iterable[Component]:
    yield Component("experts", options=ExpertsOptions, implementation="muse_scattering_router.experts:Experts")


@hookimpl
def muse_routers() -> Iterable[Component]:
    yield Component("scattering", options=ScatteringOptions, implementation="muse_scattering_router.router:Scattering")
    yield Component("act", options=ActOptions, implementation="muse_scattering_router.act:Act")


@hookimpl
def muse_safety_monitors() -> Iterable[Component]:
    yield Component(
        "routing", options=RoutingMonitorOptions, implementation="muse_scattering_router.monitor:RoutingMonitor"
    )
