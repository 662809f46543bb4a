"""Which plugin provides each component of a recipe, and why that one."""

from __future__ import annotations

from collections.abc import Iterator

from muse_core.component import Use, walk
from muse_core.recipe import Checked
from muse_core.recipe.conditions import instances
from muse_core.recipe.paths import read_path


def reasons(checked: Checked) -> list[dict[str, str]]:
    """One row per component in the order of the recipe's tables: key, kind, name, distribution, version,
    implementation, place, reason."""
    rows = []
    for use in _chosen(checked):
        path = read_path(use.path)
        rows.append({
            "key": use.path,
            "kind": use.kind,
            "name": use.name,
            "distribution": use.distribution,
            "version": use.version,
            "implementation": use.implementation,
            "place": checked.locate(path),
            "reason": _reason(checked, use),
        })
    if checked.recipe.kernels.backend == "auto":
        rows += _kernel_backends(checked)
    return rows


def _chosen(checked: Checked) -> Iterator[Use]:
    seen = set()
    for _, instance, _ in instances(checked.recipe):
        for use in walk(instance):
            if use.path not in seen:
                seen.add(use.path)
                yield use


def _reason(checked: Checked, use: Use) -> str:
    offers = checked.registry.offers(use.kind, use.name)
    default = "" if _written(checked, use) else "by default; "
    if len(offers) == 1:
        return f"{default}the only installed {use.kind} named {use.name!r}"
    others = ", ".join(f"{row.distribution} {row.version}" for row in offers if row.distribution != use.distribution)
    return f"{default}named as {use.name}@{use.distribution}; {others} offers the name too"


def _written(checked: Checked, use: Use) -> bool:
    path = read_path(use.path)
    places = checked.source.places
    value = checked.source.table
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return False
    return isinstance(value, str) or (isinstance(value, dict) and "use" in value) or (*path, "use") in places


def _kernel_backends(checked: Checked) -> list[dict[str, str]]:
    return [
        {
            "key": "kernels.backend",
            "kind": row.kind,
            "name": row.name,
            "distribution": row.distribution,
            "version": row.version,
            "implementation": row.component.implementation,
            "place": checked.locate(("kernels", "backend")),
            "reason": "backend = \"auto\" asks every installed one, highest rank first, for each operation; "
            "muse-run --dry-run shows the choice",
        }
        for row in checked.registry.rows("kernel backend")
    ]
