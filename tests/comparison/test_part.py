"""A part of a plan, or one with other seeds and values, as the command line names it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from muse_core.cli.compare import compare
from muse_core.comparison.cells import chosen_values, reported_cells, tuning_cells
from muse_core.comparison.part import part_of
from muse_core.comparison.plan import read_plan
from muse_core.errors import RecipeError
from tests.comparison.conftest import PLAN


def test_a_part_has_runs_of_the_whole_plan(plan, tmp_path: Path) -> None:
    """In the same places, so that what a part has done is not repeated."""
    whole = read_plan(plan())
    part = part_of(whole, arms="oth*", baseline="other", seeds="2")
    assert [variant.name for variant in part.plan.variants] == ["other"]
    of = [{cell.path: cell.overrides for cell in tuning_cells(read, tmp_path)} for read in (part, whole)]
    assert len(of[0]) == 2 and of[0].items() <= of[1].items()
    chosen = {"one": 1e-3, "other": 2e-3}
    of = [{cell.path: cell.overrides for cell in reported_cells(read, tmp_path, chosen)} for read in (part, whole)]
    assert len(of[0]) == 1 and len(of[1]) == 4 and of[0].items() <= of[1].items()


def test_variants_stay_in_the_order_of_the_plan_and_nothing_given_changes_nothing(plan) -> None:
    whole = read_plan(plan())
    assert part_of(whole) == whole
    assert part_of(whole, arms="other, one").plan == whole.plan


def test_a_widened_sweep_keeps_what_is_done(plan, tmp_path: Path) -> None:
    whole = read_plan(plan())
    wider = part_of(whole, values="5e-4,0.001,2e-3")
    assert wider.plan.tune.values == (5e-4, 1e-3, 2e-3)
    new, old = ({cell.path: cell.overrides for cell in tuning_cells(read, tmp_path)} for read in (wider, whole))
    assert len(new) == 6 and old.items() <= new.items()


def test_one_value_is_taken_without_a_sweep(plan, tmp_path: Path) -> None:
    """There is nothing to choose, and the runs are those of a sweep that chose it."""
    whole = read_plan(plan())
    part = part_of(whole, values="2e-3", seeds="0,1")  # a seed of the sweep's too: no sweep uses it
    assert tuning_cells(part, tmp_path) == []
    chosen = chosen_values(part.plan, [])
    assert chosen == {"one": 2e-3, "other": 2e-3}
    new, old = (
        {cell.path: cell.overrides for cell in reported_cells(read, tmp_path, chosen) if cell.seed}
        for read in (part, whole)
    )
    assert len(new) == 2 and new.items() <= old.items()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"arms": "othr"}, "--arms othr: is no variant of the plan - did you mean 'other'?"),
        ({"arms": "x*"}, "--arms x*: is no variant of the plan - it has: one, other"),
        ({"arms": ","}, "--arms ',': names nothing"),
        ({"arms": ""}, "--arms '': names nothing - name at least one, or leave the option out"),
        ({"baseline": " "}, "--baseline ' ': names nothing"),
        ({"baseline": ""}, "--baseline '': names nothing"),
        ({"seeds": ""}, "--seeds '': names nothing"),
        ({"values": ""}, "--values '': names nothing"),
        ({"arms": "other"}, "--arms other: leaves out one, with which the plan compares - name it too, or another one "
                            "with --baseline"),
        ({"baseline": "none"}, "--baseline none: is not one of the variants one, other"),
        ({"arms": "one", "baseline": "other"}, "--baseline other: is not one of the variants one"),
        ({"seeds": "1,-2"}, "--seeds -2: must be whole numbers from 0 on"),
        ({"seeds": "1,1"}, "1 is there twice"),
        ({"seeds": "0"}, "seed 0 is both tuned and reported"),
        ({"seeds": ","}, "--seeds ',': names nothing"),
        ({"values": "[1]"}, "--values [1]: must be numbers"),
        ({"values": "a b"}, "--values: 'a b' is not a TOML value"),
        ({"values": "1e-3,0.001"}, "0.001 is there twice"),
        ({"values": "1e-3,nan"}, "--values: values: nan is no finite number"),
        ({"values": "inf,1e-3"}, "--values: values: inf is no finite number"),
    ],
)
def test_what_is_no_part_of_a_plan_is_refused_in_a_sentence(plan, given: dict[str, str], says: str) -> None:
    with pytest.raises(RecipeError) as error:
        part_of(read_plan(plan()), **given)
    assert says in str(error.value)


@pytest.mark.parametrize("option", ["--arms", "--baseline", "--seeds", "--values", "--gpus"])
def test_an_option_that_names_nothing_starts_nothing(plan, tmp_path: Path, option: str) -> None:
    """As that of a shell variable that is not set."""
    path = plan()
    for runs in ([path], [tmp_path, tmp_path]):
        ended = CliRunner().invoke(compare, [*map(str, runs), "-o", str(tmp_path / "out"), option, ""])
        said = f"{option} '': names nothing" if runs == [path] else "leave all options but --output out"
        assert ended.exit_code == 2 and said in ended.output
    assert not (tmp_path / "out").exists()


def test_values_need_a_sweep(plan) -> None:
    with pytest.raises(RecipeError, match=r"--values: the plan has no \[tune\]"):
        part_of(read_plan(plan(PLAN.partition("[tune]")[0])), values="1e-3")


def test_the_command_takes_a_part_and_refuses_one_of_finished_runs(plan, tmp_path: Path) -> None:
    path = plan()
    ended = CliRunner().invoke(compare, [str(path), "--dry-run", "-o", str(tmp_path / "out"), "--arms", "other",
                                         "--baseline", "other", "--seeds", "7,8", "--values", "3e-3,6e-3"])
    assert ended.exit_code == 0, ended.output
    assert "other/tune-0.003-seed-0: to begin\n" in ended.output
    assert "seed-0: to begin\nthen 2 runs with what the sweep chose" in ended.output
    assert not any(line.startswith("one") for line in ended.output.splitlines())
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for option in ("--arms", "--baseline", "--seeds", "--values"):
        ended = CliRunner().invoke(compare, [str(tmp_path / "a"), str(tmp_path / "b"), option, "1"])
        assert ended.exit_code == 2 and "leave all options but --output out" in ended.output
