"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_mag.atlas_options import AtlasOptions
from muse_mag.options import (
    EarlierMemoryOptions,
    MagOptions,
    PersistentMemoryOptions,
    QueryProjectionOptions,
    SlidingWindowOptions,
)


@hookimpl
def muse_layers() -> Iterable[Component]:
    yield Component("sliding-window", options=SlidingWindowOptions, implementation="muse_mag.window:SlidingWindow")
    yield Component(
        "persistent-memory", options=PersistentMemoryOptions, implementation="muse_mag.persistent:PersistentAttention"
    )
    yield Component("mag", options=MagOptions, implementation="muse_mag.block:Mag")


@hookimpl
def muse_memory_layers() -> Iterable[Component]:
    yield Component(
        "qk-projection", options=QueryProjectionOptions, implementation="muse_mag.projection:ProjectedMemory"
    )
    yield Component(
        "earlier-memory", options=EarlierMemoryOptions, implementation="muse_mag.projection:EarlierMemory"
    )
    yield Component("atlas", options=AtlasOptions, implementation="muse_mag.atlas:Atlas")
