"""Signals that a component reads, with the shapes that installed layers give them."""

from __future__ import annotations

from typing import Any

from muse_core.component import provided, required
from muse_core.errors import MuseError
from muse_core.plugins import Registry
from muse_core.testing.building import resolve

_recent: list[tuple[Registry, int, dict[str, tuple[int, ...]]]] = []
"""Registries that were asked about last, with the answers: each takes a look at the options of every layer, and suites
ask several times a test."""
MOST_RECENT = 8


def published_shapes(registry: Registry, width: int) -> dict[str, tuple[int, ...]]:
    """Trailing shape of every signal that a layer with its default options provides."""
    for known, of_width, shapes in _recent:
        if known is registry and of_width == width:
            return dict(shapes)
    found = _shapes_of(registry, width)
    _recent.append((registry, width, found))
    del _recent[:-MOST_RECENT]
    return dict(found)


def _shapes_of(registry: Registry, width: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for row in (*registry.rows("layer"), *registry.rows("memory layer")):
        try:
            options = resolve(row.kind, row.reference, {}, registry).options
        except MuseError:
            continue
        for name, shape in provided(options, width).items():
            found.setdefault(name, shape)
    return found


def needed_shapes(options: Any, registry: Registry, width: int) -> dict[str, tuple[int, ...]]:
    """Those signals that a component with these options reads."""
    needs = {need.signal for need in required(options)}
    return {name: shape for name, shape in published_shapes(registry, width).items() if name in needs}
