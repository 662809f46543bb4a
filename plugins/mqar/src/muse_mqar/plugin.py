"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_mqar.options import MqarOptions, NeedleOptions


@hookimpl
def muse_sources() -> Iterable[Component]:
    yield Component("mqar", options=MqarOptions, implementation="muse_mqar.source:Mqar")
    yield Component("needle", options=NeedleOptions, implementation="muse_mqar.needle:Needle")
