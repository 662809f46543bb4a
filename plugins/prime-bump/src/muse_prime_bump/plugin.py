"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_prime_bump.options import PrimeBumpInitializerOptions, PrimeBumpOptions


@hookimpl
def muse_potentials() -> Iterable[Component]:
    yield Component("prime-bump", options=PrimeBumpOptions, implementation="muse_prime_bump.potential:PrimeBump")


@hookimpl
def muse_initializers() -> Iterable[Component]:
    yield Component(
        "prime-bump",
        options=PrimeBumpInitializerOptions,
        implementation="muse_prime_bump.initializer:PrimeBumpInitializer",
    )
