"""The conformance suites of chosen plugins, in sentences: ``python -m muse_core.testing.check [--device=D] [--kind=K …]
NAME …``.

A process of its own, so that what a plugin does on import is done to nobody else. Exit codes as ``muse plugins check``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from muse_core.cli.errors import guarded
from muse_core.component import Kind
from muse_core.errors import PluginError
from muse_core.kinds import BY_NAME, KINDS, ROWS
from muse_core.model.precision import choose_device
from muse_core.options.describe import annotation_marker, options_of
from muse_core.plugins import Loaded, Registered
from muse_core.plugins.discovery import normalised
from muse_core.plugins.near import suggestion
from muse_core.testing.cases import cases_of, installed
from muse_core.testing.reporter import ResultReporter

LAYERS = ("layer", "memory layer")
"""Kinds that can be checked on another device than the processor."""


@attrs.frozen(kw_only=True)
class Chosen:
    """A plugin, and the components of it that are checked."""

    loaded: Loaded
    rows: tuple[Registered, ...]

    @property
    def title(self) -> str:
        return f"{self.loaded.plugin.distribution} {self.loaded.plugin.version}"

    def only(self, kinds: Iterable[str]) -> Chosen:
        """Without components of other kinds."""
        return attrs.evolve(self, rows=tuple(row for row in self.rows if row.kind in kinds))


def choose(name: str) -> Chosen:
    """The plugin of a distribution with all its components, or one component by its name as in a recipe.

    Raises PluginError for a name that is neither, or that several distributions offer.
    """
    registry = installed()
    for loaded in registry.plugins:
        if loaded.plugin.distribution == normalised(name):
            return Chosen(loaded=loaded, rows=loaded.rows)
    component, _, distribution = name.partition("@")
    rows = [row for row in registry.rows() if row.name == component and distribution in ("", row.distribution)]
    owners = sorted({row.distribution for row in rows})
    if not owners:
        known = sorted({row.name for row in registry.rows()} | {row.distribution for row in registry.rows()})
        near = suggestion(name, known, "there are")
        if Path(name).is_dir():
            raise PluginError(f"nothing installed is named {name!r}, and the folder of that name has no pyproject.toml")
        raise PluginError(f"nothing installed is named {name!r}, nor is it the folder of a plugin{near}")
    if len(owners) > 1:
        choices = " or ".join(f"{component}@{owner}" for owner in owners)
        raise PluginError(f"{' and '.join(owners)} both offer {component!r} - check {choices}")
    loaded = next(one for one in registry.plugins if one.plugin.distribution == owners[0])
    return Chosen(loaded=loaded, rows=tuple(rows))


def caseless(row: Registered) -> str | None:
    """Why there is no case of a component, in a sentence, or None."""
    options = row.component.options
    needed = [option.key for option in options_of(options) if option.required]
    title = f"{row.kind} {row.name}"
    if needed and not hasattr(options, "examples"):
        return (
            f"{title}: nothing to build, since {', '.join(needed)} has no default - give {options.__name__} a static "
            "method examples(folder) that returns tables of options"
        )
    with tempfile.TemporaryDirectory() as folder:
        if cases_of(row, Path(folder)):
            return None
    return f"{title}: nothing to build, since {options.__name__}.examples returns no table"


def composed(row: Registered) -> str | None:
    """That a component is made of others which a recipe chooses, in a sentence, where it says of none which they are:
    what one case of it did would say as much of them."""
    options = row.component.options
    needed = [option for option in options_of(options) if option.required]
    made = sorted({kind for option in needed for kind in kinds_in(option.type)})
    if not made or hasattr(options, "examples"):
        return None
    suite = BY_NAME[row.kind].suite.partition(":")[2]
    return (
        f"{row.kind} {row.name}: is made of {' and '.join(f'{kind}s' for kind in made)} that a recipe chooses - to "
        f"check it with some, make a test class of muse_core.testing.{suite} with options"
    )


def kinds_in(annotation: Any) -> Iterator[str]:
    """Kinds of the components that an option of this type chooses, in nested tables too."""
    if (kind := annotation_marker(annotation, Kind)) is not None:
        yield kind.name
    elif isinstance(annotation, type) and attrs.has(annotation):
        for option in options_of(annotation):
            yield from kinds_in(option.type)
    else:
        for part in typing.get_args(annotation):
            yield from kinds_in(part)


def module_of(chosen: tuple[Chosen, ...], titles: dict[str, str], device: str) -> str:
    """A test module with one class for each plugin and component, layers on ``device``; ``titles`` gets what to call
    them."""
    modules = tuple(one.loaded.plugin.module for one in chosen)
    lines = [
        "from muse_core.testing.distributions import PluginSuite, import_report",
        *(f"from muse_core.testing.{place.replace(':', ' import ')}" for place in sorted(row.suite for row in ROWS)),
        "",
        "class Together(PluginSuite):",
        "    def report(self, plugin):",
        f"        return import_report({modules!r})[plugin.plugin.module]",
    ]
    for number, one in enumerate(chosen):
        title = f"TestPlugin{number}"
        titles[title] = one.title
        lines += ["", f"class {title}(Together):", f"    distribution = {one.loaded.plugin.distribution!r}"]
        for place, row in enumerate(one.rows):
            title = f"TestComponent{number}_{place}"
            titles[title] = f"{row.kind} {row.name}"
            reference = installed().reference(row.kind, row.name, row.distribution)
            suite = BY_NAME[row.kind].suite.partition(":")[2]
            lines += ["", f"class {title}({suite}):", f"    kind, name = {row.kind!r}, {reference!r}"]
            if row.kind in LAYERS:
                lines.append(f"    device = {device!r}")
    return "\n".join(lines) + "\n"


def run(chosen: tuple[Chosen, ...], stream: io.TextIOBase, device: str = "cpu") -> ResultReporter:
    """Run the suites under pytest, away from any project's settings; ``stream`` hears every result as it comes."""
    with tempfile.TemporaryDirectory(prefix="muse-check-") as folder:
        titles: dict[str, str] = {}
        path, settings = Path(folder) / "test_plugin.py", Path(folder) / "pytest.ini"
        path.write_text(module_of(chosen, titles, device), encoding="utf-8")
        settings.write_text("[pytest]\n", encoding="utf-8")
        reporter = ResultReporter(titles, stream)
        arguments = [str(path), "-c", str(settings), "--rootdir", folder, "-p", "no:cacheprovider", "-q"]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = pytest.main([*arguments, "-p", "muse_core.testing.pytest_plugin"], plugins=[reporter])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise PluginError(f"the checks could not run:\n{said.getvalue().strip()}")
    return reporter


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m muse_core.testing.check")
    parser.add_argument("--kind", action="append", default=[])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("names", nargs="+")
    given = parser.parse_args()
    # What tests and plugins print is captured; results are not.
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    with guarded():
        device = str(choose_device(given.device, "--device"))
        kinds = [kind for kind in given.kind or KINDS if device == "cpu" or kind in LAYERS]
        chosen = tuple(choose(name).only(kinds) for name in given.names)
        for one in chosen:
            if (given.kind or device != "cpu") and not one.rows:
                raise PluginError(f"{one.title} has no {' or '.join(given.kind or LAYERS)} to check")
        rows = [row for one in chosen for row in one.rows]
        skipped = {row: sentence for row in rows if (sentence := composed(row))}
        faults = {row: sentence for row in rows if row not in skipped and (sentence := caseless(row))}
        without = skipped.keys() | faults.keys()
        chosen = tuple(attrs.evolve(one, rows=tuple(row for row in one.rows if row not in without)) for one in chosen)
        with stream:
            reporter = run(chosen, stream, device)
            for sentence in skipped.values():
                reporter.skip(sentence)
            for sentence in faults.values():
                reporter.fail(sentence)
            reporter.sum_up()
        if reporter.failed or not reporter.passed:
            raise SystemExit(PluginError.exit_code)


if __name__ == "__main__":
    main()
