"""Which kernel backends computed the runs of a comparison. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from muse_core.recipe.lock import read_lock


def backends_of(runs: Iterable[Path]) -> dict[str, list[str]]:
    """Operation → the backends that computed it in these run directories, by their locks; a run without a lock tells
    nothing. Raises RecipeError."""
    found: dict[str, set[str]] = {}
    for lock in (run / "muse.lock.toml" for run in runs):
        if not lock.is_file():
            continue
        for row in read_lock(lock).table.get("kernels", []):
            found.setdefault(str(row.get("request")).split(" ", 1)[0], set()).add(str(row.get("backend")))
    return {operation: sorted(names) for operation, names in sorted(found.items())}


def unlike(arms: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    """A sentence for each operation that not all variants leave to the same backends, so that their speeds, and with
    equal seconds their steps, compare kernels too. ``arms``: variant → what ``backends_of`` found."""
    sentences = []
    for operation in sorted({operation for found in arms.values() for operation in found}):
        by: dict[str, list[str]] = {}
        for name, found in arms.items():
            if operation in found:
                by.setdefault(" and ".join(found[operation]), []).append(name)
        if len(by) > 1:
            told = ", ".join(f"by {backend} in {' and '.join(names)}" for backend, names in by.items())
            sentences.append(f"{operation} is computed {told}: their times compare these kernels too.")
    return sentences
