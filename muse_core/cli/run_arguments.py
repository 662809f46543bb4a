"""Arguments of commands that name runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from muse_core.cli.errors import guarded
from muse_core.cli.given_path import GivenPath
from muse_core.errors import RecipeError
from muse_core.storage.run_directory import require_run


def run_argument(name: str = "run", *, several: bool = False, recipes: bool = False) -> Callable[[Any], Any]:
    """The argument of a command for a run directory, or for ``several``; with ``recipes`` each may be a recipe too. One
    that is none of these is refused before the command's body, which imports torch, and that takes seconds."""

    def held(context: click.Context, _: click.Parameter, value: Any) -> Any:
        if not context.resilient_parsing:  # a shell completes what is not all there
            with guarded():
                for path in value if several else (value,):
                    if not recipes or path.is_dir():
                        require_run(path)
                    elif not path.exists():
                        raise RecipeError(f"{path}: no such file or run directory")
        return value

    count = -1 if several else 1
    return click.argument(name, nargs=count, required=True, type=GivenPath(path_type=Path), callback=held)
