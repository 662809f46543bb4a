"""Registers the backend."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_fla.options import FlaOptions


@hookimpl
def muse_kernel_backends() -> Iterable[Component]:
    yield Component("fla", options=FlaOptions, implementation="muse_fla.backend:Fla")
