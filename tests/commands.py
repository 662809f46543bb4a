"""Commands in this process, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from muse_core.comparison.plan import read_plan
from muse_core.recipe import read_recipe

SHORT = Path(__file__).parents[1] / "CHANGELOG.md"


def called(command: click.Command, *arguments: object) -> Result:
    """What the command said and its exit code; every argument is handed on as text."""
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def bundled_text(plan: Path) -> list[str]:
    """Options for a dry run of a plan: the bundled text in the place of sources of installed packages, and a shorter
    one where pairs of bytes are learned, as many as in the plan. The sources of torch are a minute of a processor, and
    what installs something meanwhile changes them, so that the plan is refused."""
    read = read_plan(plan)
    # What the plan itself says of its text can be read.
    recipes = [read_recipe(read.recipe(one), (*read.plan.set, *one.set)).recipe for one in read.plan.variants]
    if any(one.data.tokenizer.name == "bpe" for one in recipes):
        (vocabulary,) = {one.data.tokenizer.options.vocabulary for one in recipes}
        text = f'use = "files", paths = ["{SHORT}"], documents = "paragraph"'
        return ["--set", f'data={{ {text}, tokenizer = {{ use = "bpe", vocabulary = {vocabulary} }} }}']
    if "packages = [" not in plan.read_text(encoding="utf-8"):
        return []
    return ["--set", 'data={ use = "state-of-the-union", tokenizer = "bytes" }']


@contextlib.contextmanager
def without_random_values() -> Iterator[None]:
    """Models that are built within are zero where they would be random: for what counts their parameters and calls
    none of them. To draw thirty million values takes most of the time that building takes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal_", "uniform_"):
            patch.setattr(torch.Tensor, name, lambda tensor, *given, **named: tensor.zero_())
        patch.setattr(torch.nn.init, "orthogonal_", lambda tensor, *given, **named: torch.nn.init.zeros_(tensor))
        yield
