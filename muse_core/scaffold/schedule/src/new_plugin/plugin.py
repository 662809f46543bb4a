"""Registers the schedule."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl

from new_plugin.options import NewPluginOptions


@hookimpl
def muse_schedules() -> Iterable[Component]:
    yield Component(
        "new-plugin",
        options=NewPluginOptions,
        implementation="new_plugin.schedule:NewPlugin",
    )
