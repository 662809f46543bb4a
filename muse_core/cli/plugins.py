"""``muse plugins``: what is installed, what each component's options are, and which component a recipe gets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from muse_core.cli import CONTEXT, LazyGroup
from muse_core.cli.errors import guarded
from muse_core.cli.given_path import GivenPath
from muse_core.cli.printed import WHOLE, columns, paragraph

if TYPE_CHECKING:
    from muse_core.plugins import Registry

NAME_COLUMN = 20
OWNER_COLUMN = 28
WIDE = 120
"""Columns from which on the sentence about a component stands beside its name, not below."""
INDENT = 6 * " "


@click.group(
    cls=LazyGroup,
    context_settings=CONTEXT,
    commands_at={
        "new": ("muse_core.cli.plugin_new:new", "Write a distribution that works, to start from."),
        "check": ("muse_core.cli.plugin_check:check", "Run the conformance suite of a plugin, installed or not."),
    },
)
def plugins() -> None:
    """What is installed, and what is wrong with it; new plugins, and whether they keep the contracts."""


@plugins.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--kind", metavar="KIND", help="Only this kind, as layer or 'memory layer'.")
def list_(as_json: bool, kind: str | None) -> None:
    """Every component by kind, with the distribution that offers it; then every problem, one line each."""
    with guarded():
        from muse_core.cli.kinds import read_kind
        from muse_core.plugins import load_plugins

        kind = None if kind is None else read_kind(kind)
        registry = load_plugins()
        if as_json:
            _print_json(listing(registry, kind))
            return
        _print_rows(registry, kind)
        _print_problems(registry)


@plugins.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show(name: str, as_json: bool) -> None:
    """Options of the component NAME, or of every component of the distribution NAME."""
    with guarded():
        from muse_core.cli.component_pages import as_data, as_text
        from muse_core.errors import PluginError
        from muse_core.plugins import load_plugins
        from muse_core.plugins.discovery import normalised
        from muse_core.plugins.near import near

        registry = load_plugins()
        component, _, distribution = name.partition("@")
        rows = [
            row for row in registry.rows()
            if (row.name == component and distribution in ("", row.distribution))
            or row.distribution == normalised(name)
        ]
        if not rows:
            broken = [problem for problem in registry.problems if problem.distribution == normalised(name)]
            if broken:
                raise PluginError("\n".join(map(str, broken)))
            known = sorted({row.name for row in registry.rows()} | {row.distribution for row in registry.rows()})
            close = near(name, known)
            what_to_do = f"did you mean {close!r}?" if close else "see what is there with: muse plugins list"
            raise PluginError(f"nothing installed is named {name!r} - {what_to_do}")
        if as_json:
            _print_json([as_data(row) for row in rows])
            return
        click.echo("\n\n".join(as_text(row) for row in rows))


@plugins.command()
@click.argument("recipe", type=GivenPath())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key, as muse-run does.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def why(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Which plugin provides each component of RECIPE, and why that one."""
    with guarded():
        from muse_core.cli.reasons import reasons
        from muse_core.recipe import read_recipe

        found = reasons(read_recipe(recipe, overrides))
        if as_json:
            _print_json(found)
            return
        for one in found:
            click.echo(f"{one['key']}: {one['kind']} {one['name']}")
            click.echo(f"    {one['distribution']} {one['version']} ({one['implementation']})")
            click.echo(f"    {one['place']}: {one['reason']}")


def listing(registry: Registry, kind: str | None) -> dict:
    """The listing for programs."""
    return {
        "components": [
            {
                "kind": row.kind,
                "name": row.name,
                "summary": summary(row.component.options),
                "distribution": row.distribution,
                "version": row.version,
                "entry_point": row.entry_point,
                "module": row.module,
                "path": row.path,
                "implementation": row.component.implementation,
            }
            for row in registry.rows(kind)
        ],
        "problems": [
            {
                "distribution": problem.distribution,
                "version": problem.version,
                "entry_point": problem.entry_point,
                "what": problem.what,
                "advice": problem.advice,
            }
            for problem in registry.problems
        ],
    }


def summary(options: type) -> str:
    """First sentence of a component's help; "et al." and a number or a small letter behind a point end none."""
    text = " ".join((options.__doc__ or "").split())
    return re.split(r"(?<!et al)\. (?=[^a-z0-9])", text, maxsplit=1)[0].rstrip(".")


def _print_rows(registry: Registry, kind: str | None) -> None:
    from muse_core.kinds import KINDS

    for one in KINDS:
        rows = registry.rows(one)
        if not rows or kind not in (None, one):
            continue
        click.echo(click.style(one, bold=True))
        for row in rows:
            owner = f"{row.distribution} {row.version}"
            head, told = f"  {row.name:<{NAME_COLUMN}} {owner:<{OWNER_COLUMN}} ", summary(row.component.options)
            if (columns() or WHOLE) < WIDE:
                click.echo(head.rstrip())
                head = INDENT
            click.echo(paragraph(told, first=head, rest=" " * len(head)))


def _print_problems(registry: Registry) -> None:
    if registry.problems:
        click.echo(click.style("problems", bold=True))
    for problem in registry.problems:
        click.echo(paragraph(str(problem), first="  ", rest=INDENT))


def _print_json(data: object) -> None:
    import json

    click.echo(json.dumps(data, indent=2, ensure_ascii=False))
