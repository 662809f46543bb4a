"""A warm-up as long as the run is said."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from muse_core.cli.launch import _say_short_warmup
from muse_core.metrics.console import Display
from muse_core.recipe.schema import Train
from muse_core.testing.building import chosen


@pytest.mark.parametrize(("steps", "warmup", "said"), [(20, 50, "reaches 40% of its peak"), (50, 49, ""), (5, 0, "")])
def test_a_warmup_as_long_as_the_run_is_said(steps: int, warmup: int, said: str) -> None:
    out = io.StringIO()
    train = Train(steps=steps, warmup_steps=warmup, schedule=chosen("schedule", "cosine"))
    _say_short_warmup(train, Display(Console(file=out, width=200)))
    assert said in out.getvalue() and bool(said) == bool(out.getvalue())
