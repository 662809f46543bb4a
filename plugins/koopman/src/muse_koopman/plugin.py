"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_koopman.options import CompressedOptions, CompressOptions, DistilOptions


@hookimpl
def muse_models() -> Iterable[Component]:
    yield Component("compressed", options=CompressedOptions, implementation="muse_koopman.model:Compressed")


@hookimpl
def muse_stages() -> Iterable[Component]:
    yield Component("koopman-compress", options=CompressOptions, implementation="muse_koopman.compress:Compress")
    yield Component("koopman-distil", options=DistilOptions, implementation="muse_koopman.distil:Distil")
