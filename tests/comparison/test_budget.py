"""Plans of equal training seconds: what is measured, and what the runs are then."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from muse_core.cli.compare import FAILED_RUNS, compare
from muse_core.comparison.budget import measuring_cells, seconds_a_step, steps_in_time
from muse_core.comparison.cells import FAILED, tuning_cells
from muse_core.comparison.plan import read_plan
from muse_core.comparison.report import compose
from muse_core.comparison.runs import Comparison
from muse_core.errors import RecipeError, StorageError
from muse_core.recipe import read_recipe
from tests.comparison.conftest import tiny_recipe

PLAN = """\
name = "two"
baseline = "one"
seeds = [1]
split = "validation"
parameters = "any"
arms = [
    { name = "one", recipe = "r.toml" },
    { name = "other", recipe = "r.toml", set = ["model.depth=6"] },
]
[budget]
seconds = 0.2
measured_steps = 12
"""
TUNE = '[tune]\nkey = "train.learning_rate"\nvalues = [1e-3, 2e-3]\n'


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "r.toml").write_text(tiny_recipe(4000))
    (tmp_path / "p.toml").write_text(PLAN)
    return tmp_path / "p.toml"


def measured(cell, rows: list[tuple[int, float]], settled: bool = True) -> None:
    """A measuring run that has logged (step, seconds so far)."""
    cell.path.mkdir(parents=True)
    lines = [
        {"event": "train", "sequence": number, "attempt": 1, "step": step, "seconds": seconds}
        for number, (step, seconds) in enumerate(rows)
    ]
    (cell.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if settled:
        (cell.path / "summary.json").write_text("{}")


def test_steps_are_what_fits_into_the_seconds_at_the_speed_after_the_first_third(plan: Path, tmp_path: Path) -> None:
    plan.write_text(PLAN.replace("seconds = 0.2", "seconds = 30.01") + TUNE)
    read, out = read_plan(plan), tmp_path / "out"
    one, other = measuring_cells(read, out)
    assert tuning_cells(read, out, steps_in_time(read, out)) == []
    # Ten seconds of compilation, one slow row among fast ones: 0.02 s a step.
    measured(one, [(1, 10.0), (3, 10.5), (4, 10.52), (6, 10.56), (8, 11.5), (10, 11.54), (12, 11.58)])
    assert steps_in_time(read, out) == {"one": 1500}
    assert {cell.variant.name for cell in tuning_cells(read, out, steps_in_time(read, out))} == {"one"}
    report = compose(read.plan, Comparison(read, out).runs())
    assert report["left"][0] == "other/speed" and report["waiting_for_the_sweep"] == ["one", "other"]
    assert not report["sweep_failed"]
    # Stopped after step 6 and gone on with from step 5: 0.1 s a step.
    measured(other, [(1, 1.0), (4, 1.3), (6, 1.5), (5, 1.4), (8, 1.7), (12, 2.1)])
    assert steps_in_time(read, out) == {"one": 1500, "other": 300}
    assert {cell.overrides[-3] for cell in tuning_cells(read, out, {"one": 1500, "other": 300})} == {
        "train.learning_rate=0.001", "train.learning_rate=0.002"
    }


def test_steps_of_the_first_third_do_not_count(plan: Path, tmp_path: Path) -> None:
    cell = measuring_cells(read_plan(plan), tmp_path / "out")[0]
    compiling = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    measured(cell, [*compiling, (6, 4.1), (8, 4.2), (12, 4.4)])
    assert seconds_a_step(cell.path) == pytest.approx(0.05), "four of seven rows are of kernels that compile"


def test_what_is_measured_is_the_run_that_will_be_trained(plan: Path, tmp_path: Path) -> None:
    """With the plan's settings and the variant's, of which the later holds; ended by nothing but its steps."""
    plan.write_text('set = ["train.batch_size=7", "model.depth=2", \'evaluate.halt_above="bigram"\']\n' + PLAN)
    read = read_plan(plan)
    one, other = (read_recipe(cell.recipe, cell.overrides).recipe for cell in measuring_cells(read, tmp_path / "out"))
    assert one.train.batch_size == other.train.batch_size == 7
    assert one.model.options.depth == 2 and other.model.options.depth == 6
    assert one.train.steps == other.train.steps == 12 and one.train.log_every == 1
    assert one.evaluate.halt_above == "never" and one.evaluate.split == "validation" and one.seed == 0


def test_a_run_that_no_time_is_left_for_makes_one_step(plan: Path, tmp_path: Path) -> None:
    read, out = read_plan(plan), tmp_path / "out"
    measured(measuring_cells(read, out)[0], [(1, 1.0), (6, 3.0), (12, 6.0)])
    assert steps_in_time(read, out) == {"one": 1}, "0.2 s at half a second a step"


def test_each_row_from_the_first_third_on_counts_once(plan: Path, tmp_path: Path) -> None:
    """0.3, 0.2 and 0.1 s a step from step 4 of 12 on; between attempts a clock may go back, which tells no time."""
    cell = measuring_cells(read_plan(plan), tmp_path / "out")[0]
    measured(cell, [(1, 1.0), (4, 4.0), (6, 4.6), (8, 5.0), (9, 0.5), (12, 0.8)])
    assert seconds_a_step(cell.path) == pytest.approx(0.2)


def test_a_measurement_without_rows_is_refused(plan: Path, tmp_path: Path) -> None:
    cell = measuring_cells(read_plan(plan), tmp_path / "out")[0]
    measured(cell, [(1, 1.0)])
    with pytest.raises(StorageError, match="tells no seconds of steps - remove this folder"):
        seconds_a_step(cell.path)


def test_variants_are_measured_and_then_trained_for_as_many_steps(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(compare, [str(plan), "-o", str(out), "--slots", "2"])
    assert result.exit_code == 0, result.output
    said = [line.partition(" ")[2].partition(" in ")[0] for line in result.output.splitlines() if "/speed: " in line]
    assert said == ["one/speed: begins", "one/speed: done", "other/speed: begins", "other/speed: done"], "not alone"
    read, report = read_plan(plan), json.loads((out / "report.json").read_text())
    steps = steps_in_time(read, out)
    assert report["steps"] == steps and report["budget_seconds"] == 0.2
    for arm in report["arms"]:
        name = arm["name"]
        expected = max(1, int(0.2 / seconds_a_step(out / name / "speed")))
        recipe = tomllib.loads((out / name / "validation-seed-1" / "recipe.toml").read_text())
        assert steps[name] == recipe["train"]["steps"] == expected and arm["tokens"] == expected * 2 * 32
    assert "Equal training time, 0.2 s a run" in (out / "report.md").read_text()
    again = CliRunner().invoke(compare, [str(plan), "-o", str(out)])
    assert again.exit_code == 0 and "begins" not in again.output, again.output


def test_a_variant_that_cannot_be_measured_is_a_failed_one(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for index, cell in enumerate(measuring_cells(read_plan(plan), out)):
        measured(cell, [(1, 1.0), (6, 2.0), (12, 1e6)], settled=index == 1)
        if index == 0:
            (cell.path / FAILED).write_text("exit code 4: halted")
    read = read_plan(plan)
    report = compose(read.plan, Comparison(read, out).runs())
    assert report["reported_failed"] == ["one/speed"] and report["left"] == ["other/validation-seed-1"]
    result = CliRunner().invoke(compare, [str(plan), "-o", str(out), "--report"])
    assert "one/speed: exit code 4: halted" in result.output
    assert FAILED_RUNS == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PLAN.replace("seconds = 0.2", "seconds = 0"), "seconds"),
        (PLAN.replace("measured_steps = 12", "measured_steps = 2"), "measured_steps"),
        ('set = ["train.steps=5"]\n' + PLAN, "train.steps follows from the budget of seconds - leave it out"),
        (PLAN + TUNE.replace("learning_rate", "batch_size").replace("[1e-3, 2e-3]", "[1, 2]"),
         "train.batch_size may change the time of a step, which is measured once a variant"),
    ],
)
def test_budgets_that_cannot_be_kept_are_refused(plan: Path, text: str, words: str) -> None:
    plan.write_text(text)
    with pytest.raises(RecipeError, match=words):
        read_plan(plan)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('stages = ["train", "train"]', "its stages train, train train for the budget's seconds each"),
        ('stages = [{ use = "koopman-compress" }, { use = "koopman-distil", teacher = "x", steps = 4 }]',
         "its stage 'koopman-distil' has steps of its own"),
        ("train.schedule_steps = 9000", "its recipe's train.schedule_steps follows from the budget"),
    ],
)
def test_recipes_that_a_budget_does_not_decide_are_refused(plan: Path, tmp_path: Path, lines: str, words: str) -> None:
    """They would train for twice the seconds, for as many steps as ever, or at a rate that does not come to its end."""
    (tmp_path / "own.toml").write_text(f'extends = "r.toml"\n{lines}\n')
    plan.write_text(PLAN.replace('"r.toml", set = ["model.depth=6"]', '"own.toml"'))
    refused = CliRunner().invoke(compare, [str(plan), "-o", str(tmp_path / "out")])
    assert refused.exit_code == 2 and f"variant 'other': {words}" in refused.output, refused.output
    assert not (tmp_path / "out").exists()
    (tmp_path / "own.toml").write_text('extends = "r.toml"\nstages = ["train", "evaluate"]\n')
    assert CliRunner().invoke(compare, [str(plan), "-o", str(tmp_path / "out"), "--dry-run"]).exit_code == 0
