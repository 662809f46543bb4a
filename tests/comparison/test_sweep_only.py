"""``muse compare --sweep-only``: the sweep of a plan without the runs that it decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from muse_core.cli.compare import compare
from tests.comparison.conftest import PLAN, tiny_recipe


def called(plan: Path, *options: str) -> Any:
    return CliRunner().invoke(compare, [str(plan), "-o", str(plan.parent / "out"), *options], catch_exceptions=False)


def done(folder: Path) -> dict[str, int]:
    """Finished run → when it ended."""
    return {str(run.parent.relative_to(folder)): run.stat().st_mtime_ns for run in folder.rglob("summary.json")}


def test_the_sweep_ends_before_the_test_text_is_read(plan, tmp_path: Path) -> None:
    path = plan(PLAN.replace("seeds = [1, 2]", "seeds = [1]").replace("model.depth=3", "train.clip_norm=0.5"))
    (tmp_path / "r.toml").write_text(tiny_recipe(2))
    listed = called(path, "--sweep-only", "--dry-run")
    assert listed.exit_code == 0 and listed.output.count("to begin") == 4
    assert "what the sweep chose" not in listed.output

    swept = called(path, "--sweep-only", "--slots", "2")
    assert swept.exit_code == 0, swept.output
    assert "(4 of 4 runs)" in swept.output and "Sweep of train.learning_rate on validation text" in swept.output
    runs = done(tmp_path / "out")
    assert sorted(runs) == [
        f"{variant}/tune-{value}-seed-0" for variant in ("one", "other") for value in ("0.001", "0.002")
    ]

    whole = called(path, "--slots", "2")
    assert whole.exit_code == 0, whole.output
    after = done(tmp_path / "out")
    assert len(after) == 6 and runs.items() <= after.items(), "what was swept is not swept again"

    again = called(path, "--sweep-only")
    assert again.exit_code == 0
    table = next(line for line in again.output.splitlines() if line.startswith("| other |"))
    assert table in whole.output, "runs that are done are reported, whether or not more are run"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--values", "1e-3"), "--sweep-only: one value is taken without a sweep - name two or more with --values"),
        (("--report",), "--report runs nothing, and --sweep-only the sweep"),
    ],
)
def test_what_would_run_nothing_is_refused(plan, options: tuple[str, ...], says: str) -> None:
    ended = called(plan(), "--sweep-only", *options)
    assert ended.exit_code == 2 and says in ended.output


def test_a_plan_without_a_sweep_and_finished_runs_are_refused(plan, tmp_path: Path) -> None:
    ended = called(plan(PLAN.partition("[tune]")[0]), "--sweep-only")
    assert ended.exit_code == 2 and "--sweep-only: the plan has no [tune]" in ended.output
    ended = CliRunner().invoke(compare, [str(tmp_path), str(tmp_path), "--sweep-only"])
    assert ended.exit_code == 2 and "leave all options but --output out" in ended.output
