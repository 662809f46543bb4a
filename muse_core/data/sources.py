"""Opening the source of text that a recipe names. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from muse_core.component import Use, load
from muse_core.contracts import Source
from muse_core.errors import DataError, PluginError


@attrs.frozen(kw_only=True)
class SourceContext:
    """What a source learns when it is built."""

    cache: Path
    """Folder where a source may keep what it fetches."""


def cache_folder(configured: str | None = None) -> Path:
    """Where encoded text and downloads live: ``data.cache`` of the recipe, else the environment variable MUSE_CACHE,
    else ``muse`` in the user's cache folder (XDG_CACHE_HOME, by default ~/.cache)."""
    if configured:
        return expanded(configured, "data.cache")
    if chosen := os.environ.get("MUSE_CACHE"):
        return expanded(chosen, "MUSE_CACHE")
    usual = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(usual, "the folder of encoded text (name one with data.cache or MUSE_CACHE)") / "muse"


def expanded(path: str, where: str) -> Path:
    """A path with its ``~`` or ``~user`` replaced by that home directory. Raises DataError, naming ``where``, when
    there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{where}: {path!r}: there is no such home directory - write the whole path") from error


def open_source(use: Use, cache: Path) -> Source:
    """Build the source that ``use`` names. PluginError when its implementation cannot be imported."""
    try:
        implementation = load(use.implementation)
    except ImportError as error:
        raise PluginError(
            f"{use.path or 'data'}: source {use.name!r} of {use.distribution} {use.version} cannot be imported: {error}"
        ) from error
    source: Source = implementation(use.options, SourceContext(cache=cache))
    return source
