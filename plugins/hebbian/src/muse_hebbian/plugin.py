"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_hebbian.options import HebbianOptions


@hookimpl
def muse_memory_layers() -> Iterable[Component]:
    yield Component("hebbian", options=HebbianOptions, implementation="muse_hebbian.layer:Hebbian")
