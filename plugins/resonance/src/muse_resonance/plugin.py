"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_resonance.options import ResonanceOptions


@hookimpl
def muse_filters() -> Iterable[Component]:
    yield Component("resonance", options=ResonanceOptions, implementation="muse_resonance.filter:Resonance")
