"""From a recipe to a checked one: every problem at once, each with its place and key path."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import attrs

from muse_core.errors import RecipeError, typed
from muse_core.plugins import Registry, load_plugins
from muse_core.plugins.discovery import normalised
from muse_core.plugins.near import suggestion
from muse_core.recipe.conditions import across
from muse_core.recipe.nodes import MAX_PROBLEMS, Diagnostics, InvalidValue, Node, TooManyProblems
from muse_core.recipe.paths import read_path, written
from muse_core.recipe.positions import Path
from muse_core.recipe.reading import read_source
from muse_core.recipe.resolved import as_table
from muse_core.recipe.schema import Plugins, Recipe
from muse_core.recipe.source import RecipeText
from muse_core.recipe.structure import make_converter
from muse_core.recipe.upgrade import Renamed, upgraded

T = TypeVar("T")


@attrs.frozen(kw_only=True, eq=False)
class Checked:
    """A recipe that may be built."""

    recipe: Recipe
    """With every component as a ``Use`` and every default filled."""
    resolved: dict[str, Any]
    """The same as a plain table; checking it again gives an equal recipe."""
    registry: Registry
    """The plugins that it was checked against, without those that it leaves out."""
    source: RecipeText
    renamed: tuple[Renamed, ...] = ()
    """Former names that it uses; ``resolved`` has today's."""

    @property
    def where(self) -> str:
        """The file, for messages."""
        return self.source.where

    def locate(self, path: str | Path) -> str:
        """``"file:line"`` of a key path, or of the nearest table around it that the recipe writes."""
        return self.source.locate(read_path(path) if isinstance(path, str) and path else tuple(path))


def read_recipe(
    path: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    registry: Registry | None = None,
    *,
    made_with: Iterable[str] = (),
) -> Checked:
    """Read and check a recipe file with ``--set`` overrides such as ``"train.steps=100"``.

    Plugins are loaded as the recipe's [plugins] table says unless a registry is given. ``made_with``: of a run's
    recipe, the distributions that its lock says it was made with; a name that another one offers too means theirs.
    Raises RecipeError with every problem, one line each: ``file:line: key.path: what - what to do``.
    """
    return check_source(read_source(path, overrides), registry, made_with=made_with)


def read_table(path: str | os.PathLike[str], cls: type[T]) -> T:
    """Read a TOML file that is not a recipe, but is read as strictly, into an attrs class without components. Raises
    RecipeError with every problem."""
    source = read_source(path)
    if "model" in source.table and "arms" not in source.table:
        raise RecipeError(f"{source.where}: this is a recipe, and a plan is asked for - a plan lists recipes as arms")
    diagnostics = Diagnostics(Registry(()), folder=source.folder)
    value: T = _structured(source, make_converter(), diagnostics, cls)
    return value


def check_table(table: Mapping[str, Any], registry: Registry | None = None, where: str = "<table>") -> Checked:
    """The same for a table made in Python."""
    return check_source(RecipeText(dict(table), where, {}), registry)


def check_source(
    source: RecipeText,
    registry: Registry | None = None,
    versions: Mapping[str, str] | None = None,
    made_with: Iterable[str] = (),
) -> Checked:
    """Check a table that was read. ``versions``: distributions that it was written for, when they are known; options
    of another version pass through their class's ``upgrade(table, from_version)``. ``made_with`` as in
    ``read_recipe``. Raises RecipeError with the reasons against it."""
    if "arms" in source.table and "model" not in source.table:
        run_it = f"muse compare {typed(source.where)}"
        raise RecipeError(f"{source.where}: this is a plan of a comparison - run it with {run_it}")
    converter = make_converter()
    listed = _plugins_table(source, converter)
    if registry is None:
        registry = load_plugins(allow=listed.allow, deny=listed.deny)
    registry = registry.only(listed.allow, listed.deny).preferring([*registry.preferred, *made_with])
    table, renamed = upgraded(source.table, registry)
    source = attrs.evolve(source, table=table)
    with_tokenizer = _with_tokenizer_of_init(source)
    diagnostics = Diagnostics(registry, versions=versions or {}, folder=with_tokenizer.folder)
    installed = dict.fromkeys(loaded.plugin.distribution for loaded in registry.plugins)
    for index, name in enumerate(listed.allow or ()):
        if normalised(name) not in installed:
            hint = suggestion(name, installed, "installed")
            diagnostics.report(("plugins", "allow", index), f"{name[:64]!r} is not installed{hint}")
    recipe = _structured(with_tokenizer, converter, diagnostics, Recipe)
    diagnostics.problems.extend(across(recipe))
    _raise(source, diagnostics)
    resolved = as_table(recipe, registry)
    return Checked(recipe=recipe, resolved=resolved, registry=registry, source=source, renamed=renamed)


def _with_tokenizer_of_init(source: RecipeText) -> RecipeText:
    """The source with the tokenizer of ``init.from`` where it names none: weights belong to their tokenizer. Its path
    is relative to what ``init.from`` is relative to."""
    init, data = source.table.get("init"), source.table.get("data", {})
    run = init.get("from") if isinstance(init, Mapping) else None
    if not isinstance(run, str) or not isinstance(data, Mapping) or "tokenizer" in data:
        return source
    table = {**source.table, "data": {**data, "tokenizer": {"use": "run", "from": run}}}
    places = {**source.places, ("data", "tokenizer"): source.place(("init", "from"))}
    return attrs.evolve(source, table=table, places=places)


def _plugins_table(source: RecipeText, converter: Any) -> Plugins:
    """The [plugins] table, read before anything is imported for its sake. Raises RecipeError when it is wrong: whatever
    else were said would depend on it."""
    diagnostics = Diagnostics(Registry(()))
    try:
        return converter.structure(Node(source.table.get("plugins", {}), ("plugins",), diagnostics), Plugins)
    except (InvalidValue, TooManyProblems):
        _raise(source, diagnostics)
        raise


def _structured(source: RecipeText, converter: Any, diagnostics: Diagnostics, cls: type) -> Any:
    try:
        return converter.structure(Node(source.table, (), diagnostics), cls)
    except (InvalidValue, TooManyProblems):
        assert diagnostics.problems, "a value was refused without a reason"
        _raise(source, diagnostics)


def _raise(source: RecipeText, diagnostics: Diagnostics) -> None:
    """Every problem as a line, in the order of the file. Does nothing when there is none."""
    if not diagnostics.problems:
        return
    order = {file: number for number, (file, _) in enumerate(source.places.values())}
    ranked = sorted(diagnostics.problems, key=lambda item: (
        source.place(item[0])[0] != source.where, order.get(source.place(item[0])[0], 0), source.place(item[0])[1]))
    lines = [
        f"{source.locate(path)}: {written(path)}: {what}" if path else f"{source.locate(path)}: {what}"
        for path, what in ranked
    ]
    if len(lines) >= MAX_PROBLEMS:
        lines.append(f"{source.where}: and more; correct these {len(lines)} first")
    raise RecipeError(lines)
