"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_niah_probe.options import NiahProbeOptions


@hookimpl
def muse_safety_monitors() -> Iterable[Component]:
    yield Component("niah-probe", options=NiahProbeOptions, implementation="muse_niah_probe.monitor:NiahProbe")
