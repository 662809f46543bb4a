"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_rollback.options import PerplexitySpikeOptions, RollbackOptions


@hookimpl
def muse_safety_monitors() -> Iterable[Component]:
    yield Component("rollback", options=RollbackOptions, implementation="muse_rollback.monitor:Rollback")
    yield Component(
        "perplexity-spike",
        options=PerplexitySpikeOptions,
        implementation="muse_rollback.perplexity_spike:PerplexitySpike",
    )
