"""Registers the potentials."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_potentials.options import HermitianOptions, MemoryFeedbackOptions, NonHermitianOptions


@hookimpl
def muse_potentials() -> Iterable[Component]:
    yield Component("hermitian", options=HermitianOptions, implementation="muse_potentials.hermitian:Hermitian")
    yield Component(
        "non-hermitian",
        options=NonHermitianOptions,
        implementation="muse_potentials.non_hermitian:NonHermitian",
    )
    yield Component(
        "memory-feedback",
        options=MemoryFeedbackOptions,
        implementation="muse_potentials.memory_feedback:MemoryFeedback",
    )
