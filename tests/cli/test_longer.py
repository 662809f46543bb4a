"""Runs that are made longer than they were planned, and their learning rates."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from muse_core.cli import muse
from muse_core.cli.run import main
from muse_core.metrics.jsonl import read_rows
from muse_core.storage.checkpoint import Checkpoints
from tests.commands import called

RECIPE = """\
name = "tiny"
seed = 7
data = { use = "state-of-the-union", tokenizer = "bytes" }
[model]
width = 16
depth = 1
block = ["feed-forward"]
[train]
steps = 6
batch_size = 2
sequence_length = 32
warmup_steps = 2
log_every = 1
device = "cpu"
[evaluate]
tokens = 64
final_tokens = 64
"""


invoke = partial(called, main)


def numbers(run: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(event, step) → its last row."""
    return {(row["event"], row.get("step", 0)): row for row in read_rows(run / "metrics.jsonl")}


def test_a_run_is_made_longer_with_a_stated_schedule(recipe: Path, tmp_path: Path) -> None:
    run, planned = tmp_path / "run", tmp_path / "planned"
    assert invoke(recipe, "--run-dir", run).exit_code == 0
    longer = invoke("--resume", run, "--extend", 2)
    assert longer.exit_code == 0 and "8 steps instead of 6; after step 6 the learning rate stays" in longer.output
    rates = [row["learning_rate"] for row in read_rows(run / "metrics.jsonl") if row["event"] == "train"]
    assert len(rates) == 8 and rates[5] == rates[6] == rates[7] < rates[4]
    stretched = invoke("--resume", run, "--steps", 10)
    assert stretched.exit_code == 0 and "that of a run of 10 steps" in stretched.output
    assert invoke(recipe, "--run-dir", planned, "--set", "train.steps=10").exit_code == 0
    for step in (9, 10):
        key = ("train", step)
        assert numbers(run)[key]["learning_rate"] == numbers(planned)[key]["learning_rate"]
    assert [row["steps"] for row in read_rows(run / "events.jsonl") if row["event"] == "longer"] == [8, 10]
    assert invoke("--resume", run).exit_code == 0, "recipe and lock agree"
    short = invoke("--resume", run, "--steps", 4)
    assert short.exit_code == 2 and "has done 10 steps" in short.output
    assert invoke(recipe, "--steps", 4).exit_code == 2
    checkpoints = Checkpoints(run)
    newest, before = checkpoints.generations()[:2]
    checkpoints.abandon(after=before.number, through=newest.number)  # as a rollback does
    back = invoke("--resume", run, "--steps", before.step)
    assert back.exit_code == 0, back.output


def test_a_run_in_the_stable_phase_of_wsd_is_made_longer_as_if_it_had_been_planned_so(
    recipe: Path, tmp_path: Path
) -> None:
    run, planned, stopped = tmp_path / "run", tmp_path / "planned", tmp_path / "stopped"
    wsd = ("--set", 'train.schedule={use="wsd", decay=0.25}', "--set", "train.warmup_steps=2")
    open_end = ("--set", "train.steps=4", "--set", "train.schedule_steps=16")
    assert invoke(recipe, "--run-dir", run, *wsd, *open_end).exit_code == 0
    ended = invoke("--resume", run, "--steps", 8)
    assert ended.exit_code == 0 and "that of a run of 8 steps" in ended.output
    assert invoke(recipe, "--run-dir", planned, *wsd, "--set", "train.steps=8").exit_code == 0
    for key, row in numbers(planned).items():
        if key[0] == "train":
            assert numbers(run)[key]["loss"] == row["loss"], key
            assert numbers(run)[key]["learning_rate"] == row["learning_rate"], key
    rates = [numbers(run)["train", step]["learning_rate"] for step in range(1, 9)]
    assert rates[1] == rates[5] > rates[6] > rates[7]
    done = invoke("--resume", run, "--extend", 2)
    assert "after step 8 the learning rate stays" in done.output, "the decay is over: the rate stays where it ended"
    assert numbers(run)["train", 10]["learning_rate"] == rates[7]
    assert invoke(recipe, "--run-dir", stopped, *wsd, "--set", "train.max_seconds=1e-9").exit_code == 0
    longer = invoke("--resume", stopped, "--extend", 6)
    said = "12 steps instead of 6; the schedule is from here on that of a run of 12 steps"
    assert longer.exit_code == 0 and said in longer.output.replace("\n", " ")


def test_the_same_command_again_asks_for_no_more_until_its_steps_are_done(recipe: Path, tmp_path: Path) -> None:
    """As a queue repeats the command of a job that was ended before its time."""
    run, slow = tmp_path / "run", ("--set", "train.max_seconds=1e-9")  # a step an attempt
    assert invoke(recipe, "--run-dir", run, "--set", "train.steps=1", *slow).exit_code == 0
    for again in (False, True, True):
        ended = invoke("--resume", run, "--extend", 3)
        assert ended.exit_code == 0
        assert ("on the way to 4 steps, as --extend 3 asked before" in " ".join(ended.output.split())) == again
    assert [row["steps"] for row in read_rows(run / "events.jsonl") if row["event"] == "longer"] == [4]
    assert json.loads((run / "summary.json").read_text())["steps"] == 4
    further = invoke("--resume", run, "--extend", 3)
    assert further.exit_code == 0 and "7 steps instead of 4" in further.output
    other = invoke("--resume", run, "--extend", 2)
    assert other.exit_code == 0 and "9 steps instead of 7" in other.output, "another number is another wish"


def test_a_run_whose_only_stage_trains_nothing_cannot_be_made_longer(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert invoke(recipe, "--run-dir", run, "--set", 'stages=["evaluate"]').exit_code == 0
    before = {name: (run / name).read_bytes() for name in ("recipe.toml", "muse.lock.toml")}
    for length in ("--steps", "--extend"):
        refused = invoke("--resume", run, length, 10)
        assert refused.exit_code == 2 and "stage 'evaluate' does not train by train.steps" in refused.output
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_run_whose_checkpoints_are_damaged_is_as_long_as_before(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert invoke(recipe, "--run-dir", run).exit_code == 0
    before = {name: (run / name).read_bytes() for name in ("recipe.toml", "muse.lock.toml")}
    shutil.copytree(run / "checkpoints", tmp_path / "copy")
    for path in run.glob("checkpoints/gen-*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    for length in (("--extend", 2), ("--steps", 8)):
        failed = invoke("--resume", run, *length)
        assert failed.exit_code == 3 and "steps instead of" not in failed.output, failed.output
        assert {name: (run / name).read_bytes() for name in before} == before
    shutil.copytree(tmp_path / "copy", run / "checkpoints", dirs_exist_ok=True)
    again = invoke("--resume", run, "--extend", 2)
    assert again.exit_code == 0 and "8 steps instead of 6" in again.output
    assert [row["steps"] for row in read_rows(run / "events.jsonl") if row["event"] == "longer"] == [8]


@pytest.mark.parametrize("kept", [0, 4])
def test_no_speed_is_told_of_steps_whose_time_is_lost(recipe: Path, tmp_path: Path, kept: int) -> None:
    run = tmp_path / "run"
    assert invoke(recipe, "--run-dir", run).exit_code == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["tokens_per_second"] == summary["train_tokens"] / summary["train_seconds"]
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:kept]))
    for length in (("--extend", 2), ("--extend", 1), ()):
        longer = invoke("--resume", run, *length)
        assert longer.exit_code == 0 and "speed" in longer.output and "tokens/s over" not in longer.output
        assert "not known: metrics.jsonl lacks rows" in longer.output
        summary = json.loads((run / "summary.json").read_text())
        assert summary["train_seconds"] == summary["tokens_per_second"] == "nan" and summary["train_tokens"] > 0
    assert called(muse, "show", run).exit_code == 0
