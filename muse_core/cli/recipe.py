"""``muse recipe``: check recipes, fill in their defaults, describe what they may hold."""

from __future__ import annotations

from pathlib import Path

import click

from muse_core.cli import CONTEXT
from muse_core.cli.errors import guarded
from muse_core.cli.given_path import GivenPath

OVERRIDES = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
                         help="Override one key, as muse-run does. May be repeated.")
OUTPUT = click.option("-o", "--output", type=GivenPath(dir_okay=False), help="Write to this file instead.")


@click.group(context_settings=CONTEXT)
def recipe() -> None:
    """Check, fill and describe recipes."""


@recipe.command()
@click.argument("recipes", nargs=-1, required=True, type=GivenPath())
@OVERRIDES
def check(recipes: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Say everything that is wrong with RECIPES; nothing is built, and torch is not imported."""
    with guarded():
        from muse_core.errors import RecipeError
        from muse_core.recipe import read_recipe
        from muse_core.recipe.lock import used_distributions

        problems: list[str] = []
        for path in recipes:
            try:
                checked = read_recipe(path, overrides)
            except RecipeError as error:
                problems += error.problems
                continue
            used = ", ".join(sorted(used_distributions(checked))) or "no plugins"
            click.echo(f"{path}: ok ({checked.recipe.name}; {used})")
            for change in checked.renamed:
                click.echo(f"{checked.locate(change.path)}: {change}", err=True)
        if problems:
            raise RecipeError(problems)


@recipe.command()
@click.argument("recipe", type=GivenPath())
@OVERRIDES
@OUTPUT
def fill(recipe: str, overrides: tuple[str, ...], output: str | None) -> None:
    """Write RECIPE with every default filled in; running the result gives the same run."""
    with guarded():
        from muse_core.recipe import read_recipe, to_toml

        _deliver(to_toml(read_recipe(recipe, overrides).resolved), output)


@recipe.command()
@click.argument("recipe", type=GivenPath())
@OUTPUT
def upgrade(recipe: str, output: str | None) -> None:
    """Write RECIPE with today's names for components that were renamed, its comments and layout kept. ``-o RECIPE``
    changes the file itself."""
    with guarded():
        from muse_core.errors import RecipeError
        from muse_core.recipe import read_recipe
        from muse_core.recipe.check import check_source
        from muse_core.recipe.reading import parse
        from muse_core.recipe.upgrade import upgraded_text

        checked = read_recipe(recipe)
        text = upgraded_text(checked.source, checked.renamed)
        if "extends" not in parse(text, recipe).table:
            again = check_source(parse(text, recipe), checked.registry)
            if again.resolved != checked.resolved or again.renamed:
                raise RecipeError(f"{recipe}: the rewritten recipe would not be equal; change the names by hand")
        for change in checked.renamed:
            click.echo(f"{checked.locate(change.path)}: {change.former} is {change.name} now", err=True)
        _deliver(text, output)


@recipe.command()
@OUTPUT
def schema(output: str | None) -> None:
    """JSON Schema of recipes with the installed components, for editors that complete TOML."""
    with guarded():
        import json

        from muse_core.plugins import load_plugins
        from muse_core.recipe.json_schema import recipe_schema

        _deliver(json.dumps(recipe_schema(load_plugins()), indent=2, ensure_ascii=False) + "\n", output)


def _deliver(text: str, output: str | None) -> None:
    if output is None:
        click.echo(text, nl=False)
        return
    from muse_core.storage.disk import deliver, storage_errors

    with storage_errors("write", Path(output)):
        deliver(Path(output), text)  # which may be the recipe itself
