"""Components that are not installed, for tests of components while they are being written."""

from __future__ import annotations

from muse_core import API_VERSION
from muse_core.component import Component
from muse_core.plugins import Discovered, Loaded, Registered, Registry
from muse_core.testing.cases import installed


def registry_with(*components: tuple[str, Component], distribution: str = "loose") -> Registry:
    """What is installed, and these (kind, component) pairs beside it.

    A suite that returns it from ``registry`` tests a component that no distribution registers yet::

        class TestShift(LayerSuite):
            name = "shift"

            @classmethod
            def registry(cls):
                return registry_with(("layer", Component("shift", options=ShiftOptions, implementation="shift:Shift")))
    """
    plugin = Discovered(
        distribution=distribution, version="0", entry_point=distribution, module=__name__, api=API_VERSION
    )
    rows = tuple(
        Registered(
            kind=kind,
            component=component,
            distribution=distribution,
            version="0",
            entry_point=distribution,
            module=__name__,
        )
        for kind, component in components
    )
    return Registry((*installed().plugins, Loaded(plugin=plugin, rows=rows)))
