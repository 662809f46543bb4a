"""What the code of a distribution is, as a digest: the same for a wheel and for an editable checkout."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable

from muse_core.plugins.registry import Registry

IGNORED = ("__pycache__",)


def distribution_digest(registry: Registry, distribution: str) -> str:
    """sha256 over the packages that a distribution registers components from: their modules' top-level packages.

    One that is missing counts as empty: it stops runs that build its components, and no other.
    """
    modules = {
        reference.partition(":")[0].partition(".")[0]
        for loaded in registry.plugins
        if loaded.plugin.distribution == distribution
        for reference in (loaded.plugin.module, *(row.component.implementation for row in loaded.rows))
    }
    return package_digest(module for module in modules if importlib.util.find_spec(module) is not None)


def package_digest(packages: Iterable[str]) -> str:
    """sha256 over the files of importable top-level packages, by relative name; byte code does not count.

    Raises ModuleNotFoundError when one is not installed.
    """
    total = hashlib.sha256()
    for package in sorted(packages):
        for name, file in _files(package):
            with open(file, "rb") as opened:
                content = hashlib.sha256(opened.read()).hexdigest()
            total.update(f"{name}\0{content}\n".encode())
    return total.hexdigest()


def _files(package: str) -> list[tuple[str, str]]:
    """Name below its package, with slashes, and path of each file, sorted by name."""
    found = importlib.util.find_spec(package)
    if found is None:
        raise ModuleNotFoundError(f"package {package!r} is not installed", name=package)
    if not found.submodule_search_locations:
        return [(package, found.origin or "")]
    files = []
    for root in found.submodule_search_locations:
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if name not in IGNORED)
            below = "" if folder == root else os.path.relpath(folder, root).replace(os.sep, "/") + "/"
            files += [(f"{package}/{below}{name}", os.path.join(folder, name)) for name in names]
    return sorted(files)
