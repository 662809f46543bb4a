"""Installed plugins, read from metadata alone: nothing of theirs is imported here."""

from __future__ import annotations

import email
import functools
import re
from importlib import metadata

import attrs

from muse_core import API_VERSION, __version__
from muse_core.plugins.versions import admits

GROUP = f"muse.v{API_VERSION}"
"""Entry-point group of this hook API."""

CORE = "muse-core"

_GROUPS = re.compile(r"muse\.v(\d+)")


@attrs.frozen(kw_only=True)
class Discovered:
    """One entry point of one installed distribution."""

    distribution: str
    """Normalised name, as ``muse-fast-weights``."""
    version: str
    entry_point: str
    """Key of the entry point, as ``hebbian``."""
    module: str
    """Module that the entry point names."""
    api: int
    """Hook API that it is written for."""
    refusal: str | None = None
    """Why it cannot be loaded here, from the metadata alone; None when nothing speaks against it."""
    advice: str = ""
    """What to do about the refusal."""

    @property
    def label(self) -> str:
        """Distribution, version and entry point, for messages."""
        return f"{self.distribution} {self.version} ({self.entry_point})"


def normalised(name: str) -> str:
    """A distribution's name in the spelling of the package indexes: lower case, single dashes."""
    return re.sub(r"[-_.]+", "-", name).lower()


def discover() -> tuple[Discovered, ...]:
    """Every entry point in a group ``muse.v<N>``, sorted by distribution and key, the core's first.

    An entry point of another hook API is returned with a refusal, unless its distribution also serves this one.
    """
    found: list[Discovered] = []
    groups = metadata.entry_points()
    for group in groups.groups:
        match = _GROUPS.fullmatch(group)
        if match is None:
            continue
        for entry in groups.select(group=group):
            found.append(_discovered(entry, int(match[1])))
    served = {one.distribution for one in found if one.api == API_VERSION}
    kept = [one for one in found if one.api == API_VERSION or one.distribution not in served]
    return tuple(sorted(kept, key=lambda one: (one.distribution != CORE, one.distribution, one.entry_point)))


def _discovered(entry: metadata.EntryPoint, api: int) -> Discovered:
    text = entry.dist.read_text("METADATA") or entry.dist.read_text("PKG-INFO") or ""
    written, version, requires = _described(text.partition("\n\n")[0])
    name = normalised(written)
    refusal, advice = _metadata_refusal(entry, name, requires, api)
    return Discovered(
        distribution=name,
        version=version,
        entry_point=entry.name,
        module=entry.value,
        api=api,
        refusal=refusal,
        advice=advice,
    )


@functools.lru_cache(maxsize=1024)
def _described(headers: str) -> tuple[str, str, tuple[str, ...]]:
    """Name, version and dependencies of a distribution; every recipe that is read asks for those of all plugins."""
    described = email.message_from_string(headers)
    return described["Name"], described["Version"], tuple(described.get_all("Requires-Dist") or ())


def _metadata_refusal(
    entry: metadata.EntryPoint, name: str, requires: tuple[str, ...], api: int
) -> tuple[str | None, str]:
    if api != API_VERSION:
        return (
            f"is for hook API {api}; muse-core {__version__} offers API {API_VERSION}",
            f"install a release of {name} with an entry point in group {GROUP}",
        )
    if not re.fullmatch(r"\w+(\.\w+)*", entry.value):
        return f"its entry point {entry.value!r} does not name a module", f'write {entry.name} = "package.plugin"'
    if name == CORE:
        return None, ""
    return _core_refusal(requires, name)


def _core_refusal(requires: tuple[str, ...], name: str) -> tuple[str | None, str]:
    """Whether the distribution's dependencies admit this muse-core."""
    minor = ".".join(__version__.split(".")[:2])
    for line in requires:
        if normalised(re.match(r"\s*([A-Za-z0-9._-]*)", line)[1]) != CORE:
            continue
        try:
            admitted = admits(line, __version__)
        except ValueError as error:
            return f"its dependency {line!r} cannot be read: {error}", "reinstall it"
        if admitted:
            return None, ""
        if admitted is False:
            return (
                f"needs {line}; this is muse-core {__version__}",
                f"install a release of {name} for muse-core {minor}",
            )
    return (
        "does not say which muse-core it is for",
        f"its pyproject.toml needs the dependency muse-core>={minor} with an upper bound on the minor version",
    )
