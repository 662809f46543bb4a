"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_snr_filter.options import SnrOptions


@hookimpl
def muse_filters() -> Iterable[Component]:
    yield Component("snr", options=SnrOptions, implementation="muse_snr_filter.filter:Snr")
