"""The command line, from click's own help."""

from __future__ import annotations

import click

from muse_core.cli import muse
from muse_core.cli.run import main

from .prose import fenced

PAGE = "reference/command-line.md"
WIDTH = 78


def pages() -> dict[str, str]:
    parts = ["# Command line", "Two commands: `muse-run` runs a recipe, `muse` looks at plugins, recipes and runs."]
    for name, text in [*_helps("muse-run", main), *_helps("muse", muse)]:
        parts += [f"## `{name}`", fenced(text, "text")]
    return {PAGE: "\n\n".join(parts)}


def _helps(name: str, command: click.Command, parent: click.Context | None = None) -> list[tuple[str, str]]:
    """The help of a command and of every command below it."""
    context = command.make_context(name.rpartition(" ")[2], [], parent=parent, resilient_parsing=True)
    context.terminal_width = WIDTH
    found = [(name, command.get_help(context))]
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found += _helps(f"{name} {below}", command.get_command(context, below), context)
    return found
