"""Registers the leaky average. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_leaky_average.options import LeakyAverageOptions


@hookimpl
def muse_memory_layers() -> Iterable[Component]:
    yield Component(
        "leaky-average",
        options=LeakyAverageOptions,
        implementation="muse_leaky_average.layer:LeakyAverage",
    )
