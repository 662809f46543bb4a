"""What plugin code raised, in one line: the exception, and where in the plugin."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable

from muse_core.plugins.registry import Registered

LONGEST = 300
"""Characters of an exception's message that are told."""

CORE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def raised(error: BaseException, module: str | None = None) -> str:
    """``KeyError: 'gain' at …/muse_wave/layer.py:12``.

    The place is the innermost one in the package of ``module`` (``muse_wave.layer`` or ``muse_wave.layer:Wave``), or
    without it, in any file that is not the core's nor the import system's. A syntax error tells its own.
    """
    text = " ".join(str(error).split())
    told = f"{type(error).__name__}: {text[:LONGEST]}" if text else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return told
    package = _package(module) if module else None
    places = [
        f"{frame.f_code.co_filename}:{line}" for frame, line in traceback.walk_tb(error.__traceback__)
        if (_is_foreign(frame.f_code.co_filename) if package is None
            else _package(frame.f_globals.get("__name__", "")) == package)
    ]
    return f"{told} at {places[-1]}" if places else told


def blame(error: BaseException, rows: Iterable[Registered]) -> str | None:
    """Which distribution raised something while a run used it, or None when the innermost code that belongs to the
    project is the core's or the kernels'."""
    owners = {_package(row.component.implementation): row for row in rows}
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = _package(frame.f_globals.get("__name__", ""))
        if package in ("muse_core", "muse_kernels"):
            return None
        if package in owners:
            row = owners[package]
            place = f"{frame.f_code.co_filename}:{line}"
            return f"raised by {row.distribution} {row.version} ({row.entry_point}) at {place}"
    return None


def _package(module: str) -> str:
    return module.partition(":")[0].partition(".")[0]


def _is_foreign(file: str) -> bool:
    """Neither of the core, nor of what calls a plugin on its behalf."""
    called = "importlib" in file or file.startswith("<") or os.sep + "pluggy" + os.sep in file
    return not called and not file.startswith(CORE + os.sep)
