"""What this distribution registers."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.hookspecs import hookimpl
from muse_gradient_safety.options import GradientSafetyOptions


@hookimpl
def muse_safety_monitors() -> Iterable[Component]:
    yield Component(
        "gradient-safety",
        options=GradientSafetyOptions,
        implementation="muse_gradient_safety.monitor:GradientSafety",
    )
