"""``muse eval`` of several runs of which one cannot be measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from muse_core.cli import muse
from muse_core.evaluation import runs as measured

SUITE = ("--suite", "held-out", "--tokens", "256")


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(muse, ["eval", *map(str, arguments)])


@pytest.fixture
def damaged(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the run without a checkpoint that can be used."""
    copy = tmp_path / "damaged"
    shutil.copytree(finished_run, copy)
    for file in copy.glob("checkpoints/gen-*/*"):
        file.write_bytes(b"")
    return copy


@pytest.mark.parametrize("damaged_at", [0, 1])
def test_what_one_run_refuses_costs_the_others_nothing(finished_run: Path, damaged: Path, damaged_at: int) -> None:
    runs = [finished_run, finished_run]
    runs.insert(damaged_at, damaged)
    asked = command(*runs, *SUITE, "--json")
    assert asked.exit_code == 3
    assert [row["run"] for row in json.loads(asked.stdout)] == [str(finished_run)] * 2
    assert asked.stderr.count("no checkpoint can be used") == 1 and asked.stderr.startswith(str(damaged))


def test_a_run_alone_is_refused_without_rows(damaged: Path) -> None:
    asked = command(damaged, *SUITE, "--json")
    assert asked.exit_code == 3 and asked.stdout == "" and "no checkpoint can be used" in asked.stderr


@pytest.mark.parametrize("error, code", [(MemoryError("std::bad_alloc"), 7), (RuntimeError("a fault of ours"), 1)])
def test_memory_that_runs_out_is_of_one_run_and_a_fault_of_the_program_of_all(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    large = tmp_path / "large"
    shutil.copytree(finished_run, large)
    evaluate_run = measured.evaluate_run

    def evaluated(run: Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        if run == large:
            raise error
        return evaluate_run(run, *arguments, **options)

    monkeypatch.setattr(measured, "evaluate_run", evaluated)
    asked = command(finished_run, large, *SUITE, "--json")
    assert asked.exit_code == code
    if code == 7:
        assert f"{large}: the memory ran out (std::bad_alloc)" in asked.stderr
        assert [row["run"] for row in json.loads(asked.stdout)] == [str(finished_run)]
    else:
        assert asked.exception is error and asked.stdout == ""
