"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_gates.options import GatesOptions, PolarisationOptions


@hookimpl
def muse_layers() -> Iterable[Component]:
    yield Component("polarisation", options=PolarisationOptions, implementation="muse_gates.layer:Polarisation")


@hookimpl
def muse_safety_monitors() -> Iterable[Component]:
    yield Component("gates", options=GatesOptions, implementation="muse_gates.monitor:Gates")
