"""Registers the sinks. Imports no torch and neither library."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_trackers.options import TrackioOptions, WandbOptions


@hookimpl
def muse_sinks() -> Iterable[Component]:
    yield Component("trackio", options=TrackioOptions, implementation="muse_trackers.trackio_sink:Trackio")
    yield Component("wandb", options=WandbOptions, implementation="muse_trackers.wandb_sink:Wandb")
