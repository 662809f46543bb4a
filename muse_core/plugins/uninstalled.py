"""A plugin's folder that is not installed, made discoverable: metadata from its pyproject.toml, and nothing else."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from muse_core.errors import PluginError
from muse_core.plugins.discovery import GROUP, normalised


@attrs.frozen(kw_only=True)
class Uninstalled:
    """What a folder would install."""

    distribution: str
    """Normalised name."""
    source: Path
    """Folder to put on sys.path."""


def describe(folder: Path, site: Path) -> Uninstalled:
    """Write the metadata of the distribution in ``folder`` into ``site``, as installing it would.

    With ``site`` and the source on sys.path, ``site`` before anything installed, the plugin is found like any other.
    Raises PluginError when pyproject.toml does not describe a plugin or its module is not there.
    """
    path = folder / "pyproject.toml"
    project = _project(path)
    name, entries = project["name"], project.get("entry-points", {})
    if not entries.get(GROUP):
        table = f'[project.entry-points."{GROUP}"]'
        raise PluginError(f'{path}: names no plugin - add {table} with name = "package.plugin"')
    version = str(project.get("version", "0"))
    info = site / f"{normalised(name).replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    if "requires-python" in project:
        lines.append(f"Requires-Python: {project['requires-python']}")
    lines += [f"Requires-Dist: {requirement}" for requirement in project.get("dependencies", ())]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    groups = [
        "\n".join([f"[{group}]", *(f"{key} = {value}" for key, value in named.items())])
        for group, named in entries.items()
    ]
    (info / "entry_points.txt").write_text("\n\n".join(groups) + "\n", encoding="utf-8")
    return Uninstalled(distribution=normalised(name), source=_source(folder, entries[GROUP]))


def _project(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PluginError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise PluginError(f"{path} is no TOML: {error}") from None
    project = table.get("project")
    if not isinstance(project, dict) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(project.get("name", ""))):
        raise PluginError(f"{path}: has no [project] table with a name")
    return project


def _source(folder: Path, entries: Mapping[str, str]) -> Path:
    """The folder, ``src`` or the distribution's own, that holds the package of every entry point."""
    packages = {value.partition(".")[0] for value in entries.values()}
    for source in (folder / "src", folder):
        if all((source / package).is_dir() or (source / f"{package}.py").is_file() for package in packages):
            return source.resolve()
    wanted = ", ".join(sorted(packages))
    raise PluginError(f"{folder}: neither src nor the folder itself holds {wanted}, which its entry points name")
