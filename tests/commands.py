"""Commands in this process, for tests."""

from __future__ import annotations

from pathlib import Path

import click
from click.testing import CliRunner, Result

from muse_core.comparison.plan import read_plan
from muse_core.recipe import read_recipe


def called(command: click.Command, *arguments: object) -> Result:
    """What the command said and its exit code; every argument is handed on as text."""
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def bundled_text(plan: Path) -> list[str]:
    """Options for a dry run of a plan: the bundled text in the place of sources of installed packages. Those of torch
    are a minute of a processor, and what installs something meanwhile changes them, so that the plan is refused."""
    if "packages = [" not in plan.read_text(encoding="utf-8"):
        return []
    read = read_plan(plan)
    for variant in read.plan.variants:  # what the plan itself says of its text can be read
        read_recipe(read.recipe(variant), (*read.plan.set, *variant.set))
    return ["--set", 'data={ use = "state-of-the-union", tokenizer = "bytes" }']
