"""What a plugin registers and what a recipe chooses. Imports no torch: options are read for listing and checking."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import attrs


@attrs.frozen
class Component:
    """A registration row that a hook yields: one implementation of a kind.

    ``options`` is a frozen, keyword-only attrs class importable without torch: its fields are the recipe options, its
    docstring the help, the strings under the fields the help of each option. ``implementation`` is ``"module:Class"``;
    the core imports it when a recipe uses the component and calls ``Class(options, context)``.
    """

    name: str
    options: type = attrs.field(kw_only=True)
    implementation: str = attrs.field(kw_only=True)
    former_names: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    """Names that recipes of earlier versions call it by; they are read as today's, with a note."""


@attrs.frozen
class Kind:
    """Annotation that marks an options field as a choice of a component of this kind; written ``UseFilter``."""

    name: str


@attrs.frozen(kw_only=True)
class Use:
    """A component chosen by a recipe, with checked options.

    An options class declares nested components as ``filters: tuple[UseFilter, ...] = ("snr",)``: the default is
    written as a recipe would write it (bare names or tables) and is resolved when the recipe is checked.
    """

    kind: str
    name: str
    distribution: str
    version: str
    implementation: str
    options: Any
    path: str = attrs.field(default="", eq=False)
    """Key path in the recipe, for messages: ``model.block[1].filters[0]``."""
    qualified: bool = attrs.field(default=False, eq=False)
    """The recipe names it as ``name@distribution``."""

    @property
    def title(self) -> str:
        """Kind, name, distribution and version, for messages."""
        return f"{self.kind} {self.name!r} of {self.distribution} {self.version}"


@attrs.frozen
class PathMark:
    """Annotation that marks a text option as a path: checking a recipe makes it absolute, written ``RecipePath``.

    A relative path is relative to the file that writes it, as ``extends`` is; one of ``--set`` to the working
    directory. So a recipe means the same from every folder, and so does the resolved recipe in a run's directory.
    """

    or_name: bool = False
    """The value may be something else, a name: it is a path only where it leads to a folder."""


RecipePath = Annotated[str, PathMark()]
"""A file, a folder or a pattern of files."""
RecipePathOrName = Annotated[str, PathMark(or_name=True)]
"""A folder, where there is one of this name beside the recipe; otherwise a name, left as it is."""

UsePotential = Annotated[Use, Kind("potential")]
UseRouter = Annotated[Use, Kind("router")]
UseInitializer = Annotated[Use, Kind("initializer")]
UseKernelBackend = Annotated[Use, Kind("kernel backend")]
UseMonitor = Annotated[Use, Kind("safety monitor")]
UseLayer = Annotated[Use, Kind("layer")]
UseFilter = Annotated[Use, Kind("filter")]
UseModel = Annotated[Use, Kind("model")]
UseStage = Annotated[Use, Kind("stage")]
UseSource = Annotated[Use, Kind("source")]
UseOptimizer = Annotated[Use, Kind("optimizer")]
UseSchedule = Annotated[Use, Kind("schedule")]
UseTokenizer = Annotated[Use, Kind("tokenizer")]
UseSink = Annotated[Use, Kind("sink")]


@attrs.frozen
class Requirement:
    """A signal that a component reads from the nearest earlier layer that provides it."""

    signal: str
    optional: bool = attrs.field(default=False, kw_only=True)
    """An optional signal without an earlier publisher reads as absent (a potential then contributes zero)."""
    remedy: str = attrs.field(default="", kw_only=True)
    """What a message about a missing publisher tells the user to do."""


def provided(options: Any, width: int) -> dict[str, tuple[int, ...]]:
    """Signals that a layer with these options can publish: name → trailing shape after (B, N). Option classes that
    publish define ``def provides(self, width: int) -> dict[str, tuple[int, ...]]``."""
    return dict(options.provides(width)) if hasattr(options, "provides") else {}


def required(options: Any) -> tuple[Requirement, ...]:
    """Signals that a component reads, with those of the components nested in its options. Option classes that read
    signals define ``def requires(self) -> tuple[Requirement, ...]``."""
    own = tuple(options.requires()) if hasattr(options, "requires") else ()
    return own + tuple(need for use in nested(options) for need in required(use.options))


def grids(options: Any) -> tuple[int, ...]:
    """Numbers of tokens at whose multiples, in the stream's positions, a component acts on its state, with those of the
    components nested in its options. Option classes with such a number define ``def grid(self) -> tuple[int, ...]``;
    filters act at the ``period`` of their host."""
    own = tuple(options.grid()) if hasattr(options, "grid") else ()
    period = getattr(options, "period", None)
    if isinstance(period, int) and any(use.kind == "filter" for use in nested(options)):
        own += (period,)
    return own + tuple(number for use in nested(options) for number in grids(use.options))


def horizon(options: Any) -> float | None:
    """Tokens back that a layer's state reaches, None where its options class does not say: it defines
    ``def horizon(self) -> float | None``."""
    return options.horizon() if hasattr(options, "horizon") else None


def nested(options: Any) -> tuple[Use, ...]:
    """The components chosen in the fields of an options instance, in field order, also inside its plain tables."""
    found: list[Use] = []
    for field in attrs.fields(type(options)):
        value = getattr(options, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Use):
                found.append(item)
            elif attrs.has(type(item)):
                found.extend(nested(item))
    return tuple(found)


def named(uses: tuple[Use, ...]) -> dict[str, Use]:
    """Components of a list by name, for modules and metrics; a repeated one gets a number: ``snr``, ``snr-2``."""
    found: dict[str, Use] = {}
    for use in uses:
        name, number = use.name, 1
        while name in found:
            number += 1
            name = f"{use.name}-{number}"
        found[name] = use
    return found


def walk(options: Any) -> Iterator[Use]:
    """Every component below these options, at any depth, parents first."""
    for use in nested(options):
        yield use
        yield from walk(use.options)


def load(reference: str) -> Any:
    """Import ``"module:object"``. What is built of it finds torch's vector functions called once, by one thread: see
    ``model.vector_functions``.

    Raises ImportError when the module or the object is missing; the message names both.
    """
    module_name, separator, attribute = reference.partition(":")
    if not separator or not module_name or not attribute:
        raise ImportError(f"{reference!r} is not of the form 'module:object'")
    module = importlib.import_module(module_name)
    if "torch" in sys.modules:  # without it nothing computes yet, and a model's code brings it along
        from muse_core.model.vector_functions import call_vector_functions_once

        call_vector_functions_once()
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ImportError(f"module {module_name!r} has no object {attribute!r}") from None
