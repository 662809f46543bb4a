"""The components of muse-core itself, registered like any plugin's."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_core.model.options import ScaledOptions, StackOptions
from muse_core.training.stages import ConvertOptions, EvaluateOptions, TrainOptions


@hookimpl
def muse_models() -> Iterable[Component]:
    yield Component("stack", options=StackOptions, implementation="muse_core.model.stack:Stack")


@hookimpl
def muse_initializers() -> Iterable[Component]:
    yield Component("scaled", options=ScaledOptions, implementation="muse_core.model.initializers:Scaled")


@hookimpl
def muse_stages() -> Iterable[Component]:
    yield Component("train", options=TrainOptions, implementation="muse_core.training.objectives:Train")
    yield Component("evaluate", options=EvaluateOptions, implementation="muse_core.training.objectives:Evaluate")
    yield Component("convert", options=ConvertOptions, implementation="muse_core.training.convert:Convert")
