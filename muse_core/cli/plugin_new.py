"""``muse plugins new``: a complete distribution to start from."""

from __future__ import annotations

from pathlib import Path

import click

from muse_core.cli import CONTEXT
from muse_core.cli.errors import guarded
from muse_core.cli.given_path import GivenPath


@click.command(context_settings=CONTEXT)
@click.argument("name")
@click.option("--kind", required=True, metavar="KIND", help="As layer or 'memory layer'.")
@click.option("--into", type=GivenPath(path_type=Path), default=Path(), metavar="DIR",
              help="Folder that gets the new one [default: here].")
def new(name: str, kind: str, into: Path) -> None:
    """Write the distribution muse-NAME: a component of KIND that works, with options, tests and a recipe."""
    with guarded():
        from muse_core.cli.kinds import read_kind
        from muse_core.errors import RecipeError, typed
        from muse_core.kinds import with_article
        from muse_core.plugins import load_plugins
        from muse_core.scaffold import write_plugin

        kind = read_kind(kind)
        offers = load_plugins(strict=False).offers(kind, name)
        if offers:
            taken = offers[0]
            raise RecipeError(
                f"NAME: {name!r} is {with_article(taken.kind)} of {taken.distribution} {taken.version} - "
                "choose another name"
            )
        folder = write_plugin(name, kind, into)
        click.echo(f"wrote {folder}: {with_article(kind)} that works. Now")
        click.echo(f"    muse plugins check {typed(folder)}")
        click.echo(f"    pip install -e {typed(folder)}")
        click.echo(f"    muse-run {typed(folder / 'recipe.toml')}")
