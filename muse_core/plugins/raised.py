"""What plugin code raised, in one line: the exception, and where in the plugin."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TypeVar

from muse_core.component import Use
from muse_core.errors import MuseError, PluginError
from muse_core.out_of_memory import ran_out
from muse_core.plugins.discovery import discover

T = TypeVar("T")
LONGEST = 300
"""Characters of an exception's message that are told."""

PROJECT = ("muse_core", "muse_kernels")
"""Packages whose faults are MUSE's own."""

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


def asked(use: Use, what: str, question: Callable[[], T]) -> T:
    """An answer of a plugin's component; what it raises names it in a PluginError. A MuseError is the component's own
    sentence, and memory that runs out is nobody's fault."""
    try:
        return question()
    except MuseError:
        raise
    except Exception as error:
        if ran_out(error):
            raise
        raise PluginError(f"{use.title} raised when {what}: {raised(error, use.implementation)}") from error


def failure(error: BaseException) -> str | None:
    """What a plugin did that ended a command, in a sentence with the layer or other component, its distribution and the
    place; None when it is not a plugin's doing.

    It is when the innermost code of the project is a plugin's, or when what a layer called of the core or the kernels
    raised. Memory that ran out is nobody's doing, and neither is the end by a signal that arrives in a plugin's code.
    """
    if ran_out(error):
        return None
    walked = list(traceback.walk_tb(error.__traceback__))
    owners = {_package(one.module): one.label for one in discover() if _package(one.module) not in PROJECT}
    for frame, _ in walked:
        use, _ = _component(frame)
        if use is not None and _package(use.implementation) not in PROJECT:
            owners.setdefault(_package(use.implementation), f"{use.distribution} {use.version}")
    ours = [(frame, _package(frame.f_globals.get("__name__", ""))) for frame, _ in walked]
    ours = [(frame, package) for frame, package in ours if package in owners or package in PROJECT]
    if not ours:
        return None
    package = ours[-1][1]
    if package in PROJECT:
        package = None if isinstance(error, SystemExit) else _called_by_layer(ours)
    if package is None:
        return None
    titles = [f"{place}{use.title}" for frame, _ in ours for use, place in [_component(frame)]
              if use is not None and _package(use.implementation) == package]
    return f"{titles[-1] if titles else owners[package]}: {raised(error, package)}"


def _called_by_layer(frames: Sequence[tuple[FrameType, str]]) -> str | None:
    """The package of the layer whose call ended in the core's or the kernels' code, or None when no layer was called or
    it is the core's."""
    for (frame, _), (_, called) in reversed(list(zip(frames, frames[1:]))):
        if "site" in frame.f_locals and _component(frame)[0] is not None:
            return None if called in PROJECT else called
    return None


def _component(frame: FrameType) -> tuple[Use | None, str]:
    """The component that a function of the core deals with, and where it stands: what its variable ``site`` or ``use``
    holds."""
    if _package(frame.f_globals.get("__name__", "")) != "muse_core":
        return None, ""
    site = frame.f_locals.get("site")
    use = getattr(site, "use", None) or frame.f_locals.get("use")
    place = f"{site.full_name}: " if getattr(site, "use", None) is not None else ""
    return (use, place) if isinstance(use, Use) else (None, "")


def _package(module: str) -> str:
    return module.partition(":")[0].partition(".")[0]


def _is_foreign(file: str) -> bool:
    """Neither of the core, nor of what calls a plugin on its behalf."""
    called = "importlib" in file or file.startswith("<") or os.sep + "pluggy" + os.sep in file
    return not called and not file.startswith(CORE + os.sep)
