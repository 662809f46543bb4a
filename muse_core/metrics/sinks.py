"""Which sinks a recipe asks for, and asking them so that none ends a run or slows it unsaid. Imports no torch."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from muse_core import __version__
from muse_core.component import Use
from muse_core.contracts import Sink
from muse_core.errors import MuseError, RecipeError
from muse_core.metrics.options import TensorBoardOptions
from muse_core.plugins.discovery import CORE
from muse_core.plugins.raised import raised
from muse_core.recipe.schema import Recipe

NO_SCALARS = ("step", "stage", "length")
SLOW = 10.0
"""Seconds that a sink may take in all before it is looked at."""
SLOW_SHARE = 0.05
"""Share of the run's time so far from which a sink is called slow."""


@attrs.frozen(kw_only=True)
class SinkContext:
    """What a sink learns when it is built."""

    run: Path
    """The run's directory."""
    name: str
    """Of the recipe."""
    seed: int
    recipe: Mapping[str, Any]
    """The resolved recipe as a plain table."""
    attempt: int
    """Which process writes, from 1: a resumed run opens its sinks again."""


def chosen_sinks(recipe: Recipe) -> Iterator[Use]:
    """The sinks of a recipe; ``telemetry.tensorboard`` is one."""
    named = [use.name for use in recipe.telemetry.sinks if use.distribution == CORE]
    if recipe.telemetry.tensorboard and "tensorboard" not in named:
        yield Use(
            kind="sink", name="tensorboard", distribution=CORE, version=__version__, options=TensorBoardOptions(),
            implementation="muse_core.metrics.tensorboard:TensorBoard", path="telemetry.tensorboard",
        )
    yield from recipe.telemetry.sinks


def require_sinks(recipe: Recipe) -> None:
    """Raises RecipeError when a package that a sink needs is not installed; before anything is prepared."""
    for use in chosen_sinks(recipe):
        for package, what in getattr(use.options, "packages", {}).items():
            if importlib.util.find_spec(package) is None:
                raise RecipeError(
                    f"{use.path}: the package {package} is not installed - pip install '{what}', or leave the sink "
                    "out: metrics.jsonl has the same numbers"
                )


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of metrics as ``<event>/<key>``, those of a final evaluation as ``final/<length>/<key>``."""
    prefix = f"{row['event']}/{row['length']}" if "length" in row else row["event"]
    return {
        f"{prefix}/{key}": value for key, value in row.items()
        if type(value) in (int, float) and key not in NO_SCALARS and row["event"] != "schema"
    }


class Sinks:
    """The sinks of a run, each asked until it fails.

    ``said`` takes a row of events.jsonl for every sink that fails, once, and for every one that takes more than
    SLOW_SHARE of the run's time, once; it must not come back here.
    """

    def __init__(self, said: Callable[[dict[str, Any]], None]):
        self.said = said
        self._open: list[tuple[str, Sink]] = []
        self._spent: dict[str, float] = {}
        self._slow: set[str] = set()
        self._started = time.monotonic()

    def open(self, recipe: Recipe, context: SinkContext) -> None:
        """Builds them in the order of the recipe; one that cannot be built has failed."""
        from muse_core.building import construct

        for use in chosen_sinks(recipe):
            self._ask(use.title, use.implementation, lambda use=use: self._add(use.title, construct(use, context)))

    def row(self, row: Mapping[str, Any]) -> None:
        """Hand a row of metrics.jsonl to all of them."""
        self._each(lambda sink: sink.row(row))

    def event(self, row: Mapping[str, Any]) -> None:
        """Hand a row of events.jsonl to all of them."""
        self._each(lambda sink: sink.event(row))

    def end(self, summary: Mapping[str, Any]) -> None:
        """Hand the summary to all of them."""
        self._each(lambda sink: sink.end(summary))

    def close(self) -> None:
        """Close all of them, also those that a failure of another one left open."""
        self._each(lambda sink: sink.close(), last=True)
        self._open = []

    def _add(self, title: str, sink: Sink) -> None:
        self._open.append((title, sink))

    def _each(self, call: Callable[[Sink], None], *, last: bool = False) -> None:
        for title, sink in list(self._open):
            module = type(sink).__module__
            if not self._ask(title, module, lambda sink=sink: call(sink)):
                self._open = [(other, one) for other, one in self._open if one is not sink]
                if not last:
                    with contextlib.suppress(Exception):  # its failure is said; what it holds may still be let go
                        sink.close()

    def _ask(self, title: str, module: str, call: Callable[[], None]) -> bool:
        """Whether it went well."""
        started = time.monotonic()
        try:
            call()
        except Exception as error:  # whatever a sink or the library under it raises must not end a run
            told = str(error) if isinstance(error, MuseError) else raised(error, module)
            self.said({"event": "sink_failed", "sink": title,
                       "reason": f"{title} is left out from here on: {told}; metrics.jsonl has the same numbers"})
            return False
        now = time.monotonic()
        spent = self._spent[title] = self._spent.get(title, 0.0) + now - started
        if title not in self._slow and spent > SLOW and spent > SLOW_SHARE * (now - self._started):
            self._slow.add(title)
            share = f"{spent:.1f} s, {spent / (now - self._started):.0%} of the time so far"
            self.said({"event": "sink_slow", "sink": title, "seconds": spent,
                       "reason": f"{title} has taken {share}, and the run waits for it"})
        return True
