"""Imports plugin modules, each on its own: whatever one does wrong becomes one line that names it, and nothing else."""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType

import pluggy

from muse_core.component import Component
from muse_core.errors import PluginError
from muse_core.hookspecs import HOOK_OF_KIND, PROJECT, Hooks
from muse_core.kinds import NAMESPACE, with_article
from muse_core.options.check import documentation_faults, placement_faults, structural_faults
from muse_core.plugins.discovery import Discovered, discover
from muse_core.plugins.near import suggestion
from muse_core.plugins.raised import raised
from muse_core.plugins.registry import Loaded, Problem, Registered, Registry, exclusion

HEAVY = ("torch", "datasets", "matplotlib")
"""Modules that listing must not wait for."""


def load_plugins(
    *, allow: Iterable[str] | None = None, deny: Iterable[str] = (), strict: bool | None = None
) -> Registry:
    """Import the module of every installed plugin and collect what it registers.

    ``allow`` and ``deny`` are distributions of a recipe's [plugins] table; what they leave out is not imported.
    ``strict`` (default: the environment's ``MUSE_STRICT=1``) raises PluginError with every problem.
    """
    allow = None if allow is None else tuple(allow)
    deny = tuple(deny)
    loaded = []
    with _without_collection():
        manager = make_manager()
        for plugin in discover():
            reason = exclusion(plugin.distribution, allow, deny)
            loaded.append(Loaded(plugin=plugin, excluded=reason) if reason else load_plugin(plugin, manager))
    registry = Registry(tuple(loaded))
    if strict is None:
        strict = os.environ.get("MUSE_STRICT", "") not in ("", "0")
    if strict and registry.problems:
        raise PluginError("\n".join(map(str, registry.problems)))
    return registry


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Pauses garbage collection: what an import makes stays, and looking through it again and again is a fifth of the
    time of listing 60 plugins."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def make_manager() -> pluggy.PluginManager:
    """A manager that knows the hooks of every kind."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    return manager


def load_plugin(plugin: Discovered, manager: pluggy.PluginManager | None = None) -> Loaded:
    """Import one plugin and read its rows. Never raises for what the plugin does, SystemExit included."""
    manager = manager or make_manager()
    problems: list[Problem] = []

    def report(what: str, advice: str = "") -> None:
        problems.append(Problem(
            distribution=plugin.distribution, version=plugin.version, entry_point=plugin.entry_point,
            what=what, advice=advice,
        ))

    if plugin.refusal:
        report(plugin.refusal, plugin.advice)
        return Loaded(plugin=plugin, problems=tuple(problems))
    before = {name for name in HEAVY if name in sys.modules}
    started = time.perf_counter()
    module = _guarded(lambda: importlib.import_module(plugin.module), "importing its module raised", report)
    seconds = time.perf_counter() - started
    if module is None:
        return Loaded(plugin=plugin, seconds=seconds, problems=tuple(problems))
    path = getattr(module, "__file__", None)
    rows = tuple(_rows(plugin, module, manager, report))
    for name in HEAVY:
        if name in sys.modules and name not in before:
            report(f"imports {name} when it is listed", "import it in the implementation's module only")
    return Loaded(plugin=plugin, path=path, seconds=seconds, rows=rows, problems=tuple(problems))


def _guarded(call: Callable, what: str, report: Callable[..., None]):
    """The result of ``call``, or None after reporting what it raised. What it prints goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        report(f"{what} {raised(error)}")
    return None


def _rows(
    plugin: Discovered, module: ModuleType, manager: pluggy.PluginManager, report: Callable[..., None]
) -> Iterable[Registered]:
    known = set(HOOK_OF_KIND.values())
    for name in _hook_names(module):
        marked = hasattr(getattr(module, name), f"{PROJECT}_impl")
        if name not in known:
            report(f"{name} is not a hook of muse{suggestion(name, sorted(known), 'hooks')}")
        elif not marked:
            report(f"{name} is not marked, so it is never called", "decorate it with muse_core.hookspecs.hookimpl")
    try:
        manager.register(module, name=plugin.label)
    except ValueError:
        report(f"names the module {plugin.module}, which another entry point names too")
        return
    except pluggy.PluginValidationError as error:
        report(f"has a hook with wrong parameters: {' '.join(str(error).split())}", "hooks of muse take none")
        return
    seen: dict[tuple[str, str], str] = {}
    for kind, hook in HOOK_OF_KIND.items():
        own = [impl for impl in getattr(manager.hook, hook).get_hookimpls() if impl.plugin is module]
        if not own:
            continue
        collected = _guarded(lambda own=own: [row for impl in own for row in impl.function()], f"{hook} raised", report)
        for row in collected or ():
            if _sound(row, kind, hook, report) and _first(row, kind, seen, report):
                yield Registered(
                    kind=kind, component=row, distribution=plugin.distribution, version=plugin.version,
                    entry_point=plugin.entry_point, module=plugin.module, path=getattr(module, "__file__", None),
                )


def _hook_names(module: ModuleType) -> list[str]:
    """Functions of the module that are hooks, or look as if they were meant to be."""
    return [
        name for name, value in vars(module).items()
        if inspect.isroutine(value)
        and (hasattr(value, f"{PROJECT}_impl")
             or (name.startswith(f"{PROJECT}_") and getattr(value, "__module__", None) == module.__name__))
    ]


def _sound(row: object, kind: str, hook: str, report: Callable[..., None]) -> bool:
    """Whether a row may be registered; every fault is reported."""
    if not isinstance(row, Component):
        report(f"{hook} yields {row!r:.80}", "yield muse_core.component.Component(name, options=…, implementation=…)")
        return False
    label = f"{kind} {row.name!r}"
    if not isinstance(row.name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row.name):
        report(f"{label}: a name is small letters and digits joined by dashes")
        return False
    if not isinstance(row.implementation, str) or not re.fullmatch(r"\w+(\.\w+)*:\w+", row.implementation):
        report(f"{label}: implementation {row.implementation!r} is not of the form 'module:Class'")
        return False
    faults = _guarded(
        lambda: structural_faults(row.options) or placement_faults(row.options, kind),
        f"{label}: reading its options raised", report,
    )
    for fault in faults or ():
        report(f"{label}: {fault}")
    if faults is None or faults:
        return False
    for fault in documentation_faults(row.options):
        report(f"{label}: {fault}")
    return True


def _first(row: Component, kind: str, seen: dict[tuple[str, str], str], report: Callable[..., None]) -> bool:
    key = (NAMESPACE[kind], row.name)
    if key in seen:
        both = f"as {with_article(seen[key])} and as {with_article(kind)}"
        report(f"offers {row.name!r} twice, {both}", "a name stands once per kind")
        return False
    seen[key] = kind
    return True
