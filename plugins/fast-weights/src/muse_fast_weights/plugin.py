"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_fast_weights.options import FastWeightsOptions


@hookimpl
def muse_memory_layers() -> Iterable[Component]:
    yield Component(
        "fast-weights",
        options=FastWeightsOptions,
        implementation="muse_fast_weights.layer:FastWeights",
        former_names=("hebbian",),
    )
