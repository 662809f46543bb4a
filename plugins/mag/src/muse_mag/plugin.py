"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_mag.options import SlidingWindowOptions


@hookimpl
def muse_layers() -> Iterable[Component]:
    yield Component("sliding-window", options=SlidingWindowOptions, implementation="muse_mag.window:SlidingWindow")
