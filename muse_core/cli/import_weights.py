"""``muse import``: weights of another program as a run."""

from __future__ import annotations

from pathlib import Path

import click

from muse_core.cli.errors import guarded, warn
from muse_core.cli.given_path import GivenPath
from muse_core.cli.threads import prepare_torch


@click.command("import")
@click.argument("recipe", type=GivenPath(path_type=Path))
@click.argument("weights", type=GivenPath(path_type=Path))
@click.argument("run", type=GivenPath(path_type=Path))
@click.option("--names", type=GivenPath(path_type=Path), help="TOML table of names: \"OURS\" = \"THEIRS\".")
@click.option("--partial", is_flag=True, help="Weights that are missing start as the recipe says.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key of the recipe.")
def import_(
    recipe: Path, weights: Path, run: Path, names: Path | None, partial: bool, overrides: tuple[str, ...]
) -> None:
    """Make RUN, a run directory, of the model of RECIPE with WEIGHTS, a safetensors file or a directory of them.

    Nothing is trained. Generate from RUN, evaluate it, export it, or train it on by init.from.
    """
    with guarded():
        prepare_torch()
        from muse_core.interchange.weights import import_run, read_rules
        from muse_core.recipe import read_recipe

        rules = () if names is None else read_rules(names)
        given, whole, left = import_run(read_recipe(recipe, overrides), weights, run, rules, partial=partial)
        if left:
            like = ", ".join(left[:4]) + (", …" if len(left) > 4 else "")
            warn(f"{weights}: {len(left)} weights have no place in this model: {like}")
        click.echo(f"{run}: {given} of {whole} weights from {weights}")
