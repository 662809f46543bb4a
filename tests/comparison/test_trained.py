"""Variants that are trained on more, less or other rows than the baseline are named, before and after."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from muse_core.cli.compare import compare
from muse_core.comparison.plan import read_plan
from muse_core.comparison.report import compose, text_of
from muse_core.comparison.runs import Comparison
from muse_core.comparison.trained import unlike_training
from tests.comparison.conftest import PLAN

ALIKE = PLAN.partition("[tune]")[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("train.steps=10", "train.steps 10 for 600"),
        ("train.batch_size=2", "train.batch_size 2 for 8"),
        ("train.sequence_length=64", "train.sequence_length 64 for 256"),
        ("train.learning_rate=1e-2", ""),
    ],
)
def test_what_is_read_in_training_is_compared_with_the_baseline(plan, more: str, said: str) -> None:
    found = unlike_training(read_plan(plan(ALIKE.replace("model.depth=3", more))))
    assert len(found) == bool(said)
    assert not said or f"other is trained otherwise than one, {said}:" in found[0]


def test_what_the_plan_sweeps_or_a_budget_decides_is_no_difference(plan, tmp_path: Path) -> None:
    more = ALIKE.replace("model.depth=3", "train.steps=10")
    assert unlike_training(read_plan(plan(more + 'tune = { key = "train.batch_size", values = [2, 4] }\n')))
    (tmp_path / "short.toml").write_text('extends = "r.toml"\ntrain = { steps = 10 }\n')
    short = ALIKE.replace('"other", recipe = "r.toml"', '"other", recipe = "short.toml"')
    assert unlike_training(read_plan(plan(short)))
    assert not unlike_training(read_plan(plan(short + "budget = { seconds = 2 }\n")))
    swept = ALIKE + 'tune = { key = "train.steps", values = [5, 10] }\n'
    assert not unlike_training(read_plan(plan(swept)))


def test_the_command_and_the_report_say_it(plan, tmp_path: Path) -> None:
    path = plan(ALIKE.replace("model.depth=3", "train.steps=10"))
    said = "other is trained otherwise than one, train.steps 10 for 600"
    ended = CliRunner().invoke(compare, [str(path), "--dry-run", "-o", str(tmp_path / "out")])
    assert ended.exit_code == 0 and f"warning: {said}" in ended.output, ended.output
    read = read_plan(path)
    assert f"\n{said}" in text_of(compose(read.plan, Comparison(read, tmp_path / "out").runs()))
