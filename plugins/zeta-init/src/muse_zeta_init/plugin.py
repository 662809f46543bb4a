"""Registers the initializers and the positions."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_zeta_init.options import OrthogonalOptions, RandomSpectrumOptions, ZetaOptions, ZetaPositionsOptions


@hookimpl
def muse_initializers() -> Iterable[Component]:
    yield Component("zeta", options=ZetaOptions, implementation="muse_zeta_init.initializers:Zeta")
    yield Component("orthogonal", options=OrthogonalOptions, implementation="muse_zeta_init.initializers:Orthogonal")
    yield Component(
        "random-spectrum",
        options=RandomSpectrumOptions,
        implementation="muse_zeta_init.initializers:RandomSpectrum",
    )


@hookimpl
def muse_layers() -> Iterable[Component]:
    yield Component(
        "zeta-positions",
        options=ZetaPositionsOptions,
        implementation="muse_zeta_init.positions:ZetaPositions",
    )
