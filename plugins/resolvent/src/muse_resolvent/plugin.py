"""Registers the resolvent layer."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_resolvent.options import ResolventOptions


@hookimpl
def muse_layers() -> Iterable[Component]:
    yield Component("resolvent", options=ResolventOptions, implementation="muse_resolvent.layer:Resolvent")
