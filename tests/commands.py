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


@contextlib.contextmanager
def without_random_values() -> Iterator[None]:
    """Models that are built within are zero where they would be random: for what counts their parameters and calls
    none of them. To draw thirty million values takes most of the time that building takes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal_", "uniform_"):
            patch.setattr(torch.Tensor, name, lambda tensor, *given, **named: tensor.zero_())
        patch.setattr(torch.nn.init, "orthogonal_", lambda tensor, *given, **named: torch.nn.init.zeros_(tensor))
        yield
