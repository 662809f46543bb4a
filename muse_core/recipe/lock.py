"""``muse.lock.toml``: everything that a run's numbers depend on, written beside them, and what differs here and now."""

from __future__ import annotations

import contextlib
import copy
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs

from muse_core import __version__
from muse_core.component import walk
from muse_core.errors import RecipeError
from muse_core.model.kernels import BackendSelection
from muse_core.plugins import Registry
from muse_core.plugins.digest import distribution_digest, package_digest
from muse_core.plugins.discovery import CORE
from muse_core.recipe.check import Checked, check_source
from muse_core.recipe.conditions import instances
from muse_core.recipe.reading import overridden, read_source
from muse_core.recipe.source import RecipeText
from muse_core.recipe.writing import normalised

FORMAT = 1
BACKGROUND = ("numpy", "torch", "triton")
"""Distributions that the numbers depend on besides plugins."""
GO_ON = "go on all the same with --allow-drift"
"""Last line of what is said of differences."""


@attrs.frozen(kw_only=True)
class Difference:
    """One thing that is not as the lock says."""

    what: str
    locked: str
    here: str

    def __str__(self) -> str:
        return f"{self.what}: the lock says {_short(self.locked)}, here it is {_short(self.here)}"


def _short(value: str) -> str:
    """A digest by its first twelve figures, as git shows commits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1…", value)


@attrs.frozen
class Lock:
    """What a lock file holds."""

    table: dict[str, Any]
    where: str
    """The file, for messages."""

    @property
    def made_with(self) -> tuple[str, ...]:
        """The distributions that the run's components are of."""
        rows = self.table.get("plugins", [])
        return tuple(str(row["name"]) for row in rows if "name" in row and row.get("used", True))

    def check(self, overrides: Iterable[str] = (), registry: Registry | None = None) -> Checked:
        """The recipe in the lock, checked here, with ``--set`` overrides. Options that another version of a plugin
        wrote pass through its ``upgrade``. Raises RecipeError."""
        versions = {
            str(row["name"]): str(row["version"])
            for row in self.table.get("plugins", []) if {"name", "version"} <= set(row)
        }
        source = RecipeText(copy.deepcopy(self.table["recipe"]), f"{self.where} [recipe]", {})
        with plugins_named(self):
            return check_source(overridden(source, overrides), registry, versions, self.made_with)


@contextlib.contextmanager
def plugins_named(lock: Lock) -> Iterator[None]:
    """Around reading the recipe of a run: where it is refused and plugins that made the run are not here, or in another
    version, these are named first, since a recipe knows no distributions."""
    try:
        yield
    except RecipeError as error:
        sentence = not_as_made(lock)
        if not sentence:
            raise
        raise RecipeError([sentence, *error.problems]) from None


def not_as_made(lock: Lock) -> str:
    """The plugins that made a run and are not here, or in another version, in a sentence; empty where all are here."""
    made = [(str(row.get("name")), str(row.get("version"))) for row in lock.table.get("plugins", [])
            if row.get("used", True)]
    here = {name: _version(name) for name, _ in made}
    missing = [f"{name} {version} ({f'here {here[name]}' if here[name] else 'not installed here'})"
               for name, version in made if here[name] != version]
    return f"{lock.where}: the run was made with {', '.join(missing)} - install what made it" if missing else ""


def make_lock(
    checked: Checked,
    *,
    device: str,
    kernels: Mapping[str, BackendSelection] | None = None,
    digests: Mapping[str, str] | None = None,
    in_training: Mapping[str, float] | None = None,
    causality_gate: Mapping[str, Any] | None = None,
) -> Lock:
    """The lock of a run; its table is for :func:`~muse_core.recipe.writing.to_toml`.

    ``device`` is the resolved one with its name, ``kernels`` the selections of the build by request, ``digests`` those
    of the data and tokenizer, ``in_training`` the part of each held-out split's bytes that stands verbatim in training
    text, ``causality_gate`` how its exact check ran where that is not float64.

    Imports no torch; versions come from metadata.
    """
    kernels = kernels or {}
    serving = {selection.backend for selection in kernels.values()}
    used = used_distributions(checked) | {
        row.distribution for row in checked.registry.rows("kernel backend") if row.name in serving
    }
    table = {
        "format": FORMAT,
        "seed": checked.recipe.seed,
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": device,
            **{name: version for name in BACKGROUND if (version := _version(name))},
        },
        "source": source_commit(checked.where),
        "digests": dict(digests or {}),
        "held_out_in_training": dict(in_training or {}),
        "packages": [
            {"name": CORE, "version": __version__, "digest": package_digest(["muse_core"])},
            *_kernels_package(),
        ],
        "plugins": _plugins(checked.registry, used),
        "kernels": [
            {"request": request, "backend": selection.backend, "implementation": selection.implementation}
            for request, selection in kernels.items()
        ],
        "recipe": checked.resolved,
    }
    if causality_gate:
        table["causality_gate"] = dict(causality_gate)
    return Lock(normalised(table), checked.where)


def used_distributions(checked: Checked) -> frozenset[str]:
    """Distributions of the components that a recipe chooses, at any depth."""
    found: set[str] = set()
    for _, instance, _ in instances(checked.recipe):
        found |= {use.distribution for use in walk(instance)}
    return frozenset(found - {CORE})


def read_lock(path: str | os.PathLike[str]) -> Lock:
    """The lock in a file. Raises RecipeError when it is not one."""
    if Path(path).is_dir():
        raise RecipeError(f"{path}: is a directory - name the lock in it: {Path(path) / 'muse.lock.toml'}")
    source = read_source(path)
    table = source.table
    if table.get("format") != FORMAT or not isinstance(table.get("recipe"), dict):
        raise RecipeError(f"{source.where}: not a lock of format {FORMAT}; give the muse.lock.toml of a run")
    for key in ("environment", "digests"):
        if not isinstance(table.get(key, {}), dict):
            raise RecipeError(f"{source.locate((key,))}: {key}: must be a table; the lock is damaged")
    for key in ("packages", "plugins", "kernels"):
        rows = table.get(key, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise RecipeError(f"{source.locate((key,))}: {key}: must be a list of tables; the lock is damaged")
    return Lock(table, source.where)


def differences(before: Lock, now: Lock) -> tuple[Difference, ...]:
    """What could change the numbers: recipe, seed, environment, data, code of the core and of the plugins in use, and
    the kernel that serves each operation. The commit and unused plugins are for the record only."""
    locked, here = before.table, now.table
    found: list[Difference] = []
    for part in ("environment", "digests"):
        found += _compare(part, locked.get(part, {}), here.get(part, {}), ignore=("platform",))
    for part in ("packages", "plugins"):
        found += _compare_rows(part, "name", locked, here)
    found += _compare_rows("kernels", "request", locked, here)
    found += _compare("recipe", _flat(locked.get("recipe", {})), _flat(here.get("recipe", {})))
    return tuple(found)


def _compare(
    part: str, locked: Mapping[str, Any], here: Mapping[str, Any], ignore: tuple[str, ...] = ()
) -> list[Difference]:
    keys = dict.fromkeys((*locked, *here))
    return [
        Difference(what=f"{part}.{key}", locked=_said(locked, key), here=_said(here, key))
        for key in keys if key not in ignore and _said(locked, key) != _said(here, key)
    ]


def _compare_rows(part: str, key: str, locked: Mapping[str, Any], here: Mapping[str, Any]) -> list[Difference]:
    def by_name(lock: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        return {
            str(row.get(key)): {name: value for name, value in row.items() if name not in (key, "used")}
            for row in lock.get(part, []) if row.get("used", True)
        }

    old, new = by_name(locked), by_name(here)
    return [
        difference for name in dict.fromkeys((*old, *new))
        for difference in _compare(f"{part}.{name}", old.get(name, {}), new.get(name, {}))
    ]


def _said(table: Mapping[str, Any], key: str) -> str:
    return repr(table[key]) if key in table else "absent"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Key path → value of every leaf."""
    if isinstance(value, Mapping):
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and value:
        items = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {path: value}
    return {key: leaf for name, item in items for key, leaf in _flat(item, name).items()}


def _plugins(registry: Registry, used: frozenset[str]) -> list[dict[str, Any]]:
    versions = {
        loaded.plugin.distribution: loaded.plugin.version
        for loaded in registry.plugins if loaded.rows and loaded.plugin.distribution != CORE
    }
    return [
        {"name": name, "version": version, "digest": distribution_digest(registry, name), "used": name in used}
        for name, version in sorted(versions.items())
    ]


def _kernels_package() -> list[dict[str, Any]]:
    version = _version("muse-kernels")
    return [{"name": "muse-kernels", "version": version, "digest": package_digest(["muse_kernels"])}] if version else []


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def source_commit(recipe: str) -> dict[str, Any]:
    """Commit of the repository that holds the recipe; empty outside one."""
    folder = Path(recipe).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    return {"commit": commit, "modified": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True, encoding="utf-8"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
