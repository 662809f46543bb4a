"""How ``muse compare`` begins, ends and is called again: real runs in real processes, real signals, on a tiny plan."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from muse_core.cli.compare import FAILED_RUNS, LEFT, compare
from muse_core.comparison import slots
from muse_core.comparison.cells import FAILED, reported_cells, tuning_cells
from muse_core.comparison.plan import read_plan, value_name
from muse_core.comparison.slots import MOST_TRIES, Slots
from muse_core.errors import RecipeError
from muse_core.metrics.jsonl import read_rows
from muse_core.storage.checkpoint import Checkpoints
from muse_core.storage.directory_lock import RunLock
from muse_core.storage.disk import Disk
from muse_core.testing import warm
from tests.commands import called
from tests.comparison.conftest import tiny_recipe

PLAN = """\
name = "one"
baseline = "rotary"
seeds = [1]
split = "validation"
arms = [{ name = "rotary", recipe = "r.toml" }]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "r.toml").write_text(tiny_recipe(2))
    (tmp_path / "p.toml").write_text(PLAN)
    return tmp_path / "p.toml"


def tuned(plan: Path, key: str, values: str) -> None:
    plan.write_text(f'{PLAN}[tune]\nkey = "{key}"\nvalues = {values}\n')


call = partial(called, compare)


def test_ctrl_c_at_a_terminal_saves_every_run(plan: Path, tmp_path: Path) -> None:
    """A terminal signals the whole foreground group, ``timeout`` the process besides."""
    long = ("--set", "train.steps=1000000", "--set", "checkpoint.every=1000000")
    command = [sys.executable, "-c", "from muse_core.cli import muse; muse()", "compare"]
    process = warm.Popen(
        [*command, str(plan), "-o", str(tmp_path / "out"), *long], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )
    run = tmp_path / "out/rotary/validation-seed-1"
    patience = time.monotonic() + 120
    while not ((run / "metrics.jsonl").is_file() and '"train"' in (run / "metrics.jsonl").read_text()):
        assert time.monotonic() < patience and process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 130 and "to be continued" in said and "Traceback" not in said, said
    done = [row["step"] for row in read_rows(run / "metrics.jsonl") if row["event"] == "train"][-1]
    assert Checkpoints(run).generations()[0].step == done > 0


def test_tuned_values_keep_their_type(plan: Path, tmp_path: Path) -> None:
    tuned(plan, "train.warmup_steps", "[1, 2]")
    done = call(plan, "-o", tmp_path / "out", "--slots", 2)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert set(report["sweep"]["rotary"]) == {"1", "2"} and report["arms"][0]["value"] in (1, 2)
    tuned(plan, "train.optimizer", '["adamw", "muon"]')
    listed = call(plan, "-o", tmp_path / "words", "--dry-run")
    assert listed.exit_code == 0 and "rotary/tune-muon-seed-0: to begin" in listed.output, listed.output
    tuned(plan, "train.compile", "[false, true]")
    assert "tune-true-seed-0" in call(plan, "-o", tmp_path / "truths", "--dry-run").output


def test_different_values_have_different_names_and_equal_ones_are_refused(plan: Path, tmp_path: Path) -> None:
    tuned(plan, "train.learning_rate", "[0.001, 0.0010000001, 1e-9]")
    cells = tuning_cells(read_plan(plan), tmp_path)
    assert len({cell.path for cell in cells}) == 3 and cells[0].path.name == "tune-0.001-seed-0"
    words = ["a b", "a-b", "../up", "x" * 80, "x" * 81]
    assert len({value_name(word) for word in words}) == 5
    assert not any("/" in value_name(word) or value_name(word).startswith(".") for word in words)
    tuned(plan, "train.learning_rate", "[0.001, 1e-3]")
    with pytest.raises(RecipeError, match="is there twice"):
        read_plan(plan)


def test_a_seed_counts_once(plan: Path) -> None:
    """Two equal runs would be taken for two that agree, and the interval would be too narrow."""
    written = plan.read_text()
    plan.write_text(written.replace("seeds = [1]", "seeds = [1, 2, 1]"))
    with pytest.raises(RecipeError, match="seeds: 1 is there twice - name every seed once"):
        read_plan(plan)
    plan.write_text(written + '\n[tune]\nkey = "train.learning_rate"\nvalues = [1e-3]\nseeds = [0, 0]\n')
    with pytest.raises(RecipeError, match="seeds: 0 is there twice"):
        read_plan(plan)


@pytest.mark.parametrize(
    "key, values, said",
    [("train.warmup_steps", "[2.0, 5]", "whole number"), ("train.optimizer", '["adamw", "adamm"]', "adamm"),
     ("train.sequence_length", "[32, 99999999]", "train.sequence_length=99999999"),
     ("model.block[0].heads", "[2, 3]", "heads")],
)
def test_a_plan_is_tried_before_its_first_run(plan: Path, tmp_path: Path, key: str, values: str, said: str) -> None:
    tuned(plan, key, values)
    for more in ((), ("--dry-run",)):
        refused = call(plan, "-o", tmp_path / "out", *more)
        assert refused.exit_code == 2 and "variant 'rotary' with" in refused.output and said in refused.output
        assert not (tmp_path / "out").exists()


def test_what_is_wrong_with_a_recipe_is_said_once(plan: Path, tmp_path: Path) -> None:
    tuned(plan, "train.learning_rate", "[1e-3, 3e-3]")
    refused = call(plan, "-o", tmp_path / "out", "--set", "model.block[0].heds=2")
    assert refused.exit_code == 2 and refused.output.count("no option 'heds'") == 1, refused.output


def test_nothing_to_call_again_for_is_another_exit_code(plan: Path, tmp_path: Path) -> None:
    """Every run fails when it starts, which no trial of the plan foresees."""
    tuned(plan, "train.learning_rate", "[1e-3, 3e-3]")
    out = tmp_path / "out"
    full = ("--set", "checkpoint.quota=1")
    for _ in range(2):
        ended = call(plan, "-o", out, *full)
        assert ended.exit_code == FAILED_RUNS and "No value of the sweep could be judged for: rotary" in ended.output
    assert "begins" not in ended.output
    plan.write_text(PLAN)
    assert call(plan, "-o", tmp_path / "plain", *full).exit_code == FAILED_RUNS


def test_a_run_that_another_process_works_on_has_not_failed(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (cell,) = reported_cells(read_plan(plan), out, {"rotary": None})
    cell.path.mkdir(parents=True)
    lock = RunLock(cell.path, Disk())
    ended = call(plan, "-o", out)
    assert ended.exit_code == LEFT and "another process works on it" in ended.output, ended.output
    assert not (cell.path / FAILED).exists()
    lock.release()
    assert call(plan, "-o", out).exit_code == 0
    (cell.path / FAILED).write_text("exit code 3: in use\n")
    again = call(plan, "-o", out)
    assert again.exit_code == 0 and "Failed" not in again.output, "a summary clears a failure"


@pytest.mark.parametrize("option, value, said", [
    ("--max-seconds", "nan", "must be a finite number"),
    ("--max-seconds", "inf", "leave it out for no limit"),
    ("--gpus", "0,first", "'first' names no GPU"),
    ("--gpus", "-1", "'-1' names no GPU"),
])
def test_an_option_without_meaning_is_refused(plan: Path, tmp_path: Path, option: str, value: str, said: str) -> None:
    refused = call(plan, "-o", tmp_path / "out", option, value)
    assert refused.exit_code == 2 and said in refused.output and not (tmp_path / "out").exists(), refused.output


@pytest.mark.parametrize("gpus", ["77777", "0,77777", "GPU-00000000-0000-0000-0000-000000000000"])
def test_gpus_that_are_not_there_are_refused(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: str
) -> None:
    """A run that sees none takes the CPU. Whatever this process may see, a run sees the GPU that it is given."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    refused = call(plan, "-o", tmp_path / "out", "--gpus", gpus)
    assert refused.exit_code == 2 and "is not there: torch sees " in refused.output, refused.output
    assert f"--gpus {gpus}: GPU " in refused.output and not (tmp_path / "out").exists()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert call(plan, "-o", tmp_path / "out", "--gpus", gpus, "--dry-run").exit_code == 0


def test_one_comparison_works_in_a_folder(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    lock = RunLock(out, Disk())
    refused = call(plan, "-o", out)
    assert refused.exit_code == 3 and "in use by process" in refused.output and "another --output" in refused.output
    (cell,) = reported_cells(read_plan(plan), out, {"rotary": None})
    cell.path.mkdir(parents=True)
    (cell.path / FAILED).write_text("exit code 4: it diverged\n")
    assert call(plan, "-o", out, "--report").exit_code == FAILED_RUNS
    refused = call(plan, "-o", out, "--report", "--retry")
    assert refused.exit_code == 2 and "leave one of them out" in refused.output, refused.output
    assert (cell.path / FAILED).is_file(), "a call that only reads took back what another one found"
    lock.release()


@pytest.mark.parametrize(
    "end, reason", [("os.kill(os.getpid(), 9)", "was killed"), ("os._exit(0)", "without a summary")]
)
def test_attempts_that_bring_nothing_are_bounded(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, reason: str
) -> None:
    """Processes that end before their first checkpoint, as for want of memory."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"import os, sys\nif '--run-dir' in sys.orig_argv:\n    {end}\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setattr(slots, "subprocess", subprocess)  # an interpreter that starts reads sitecustomize
    said: list[str] = []
    (cell,) = reported_cells(read_plan(plan), tmp_path / "out", {"rotary": None})
    Slots(count=1, gpus=[], say=said.append).work(lambda: [] if cell.settled() else [cell], lambda: None)
    assert sum("begins" in text for text in said) == MOST_TRIES
    assert reason in (cell.failure() or "") and f"{MOST_TRIES} times without a new checkpoint" in (cell.failure() or "")


def test_a_job_that_the_scheduler_ended_is_told_as_that(plan: Path, tmp_path: Path) -> None:
    def launch(command: list[str], log: Path, environment: dict[str, str]) -> SimpleNamespace:
        log.parent.mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(returncode=-signal.SIGKILL, poll=lambda: -signal.SIGKILL)

    said: list[str] = []
    (cell,) = reported_cells(read_plan(plan), tmp_path / "out", {"rotary": None})
    Slots(count=1, gpus=[], say=said.append, launch=launch).work(
        lambda: [] if cell.settled() else [cell], lambda: None
    )
    told = "was ended by the scheduler, as for its time or memory, or lost its host, "
    assert (cell.failure() or "").startswith(told)
    assert not any("want of memory" in text for text in said)


def test_runs_after_a_change_of_the_text_are_refused(plan: Path, tmp_path: Path) -> None:
    """Runs that are done have read the text as it was, and further ones would be held against them."""
    notes = tmp_path / "notes.txt"
    texts = [f"Note {n}: the answer is {n ** 3}, said over {'and ' * (n % 5)}over." for n in range(90)]
    notes.write_text("\n\n".join(texts))
    own = f'data = {{ use = "files", paths = ["{notes}"], documents = "paragraph", validation = 0.3 }}'
    (tmp_path / "r.toml").write_text(tiny_recipe(2).replace('data = { use = "state-of-the-union" }', own))
    out = tmp_path / "out"
    assert call(plan, "-o", out).exit_code == 0
    plan.write_text(PLAN.replace("seeds = [1]", "seeds = [1, 2]"))
    notes.write_text("\n\n".join([*texts, "A note that came later."]))
    refused = call(plan, "-o", out)
    done = out / "rotary/validation-seed-1"
    assert refused.exit_code == 2 and f"{done}: read other input" in refused.output, refused.output
    assert "digests.data" in refused.output and not (out / "rotary/validation-seed-2").exists()
    assert call(plan, "-o", out, "--report").exit_code == LEFT
    notes.write_text("\n\n".join(texts))
    assert call(plan, "-o", out).exit_code == 0
    (done / "muse.lock.toml").unlink()
    refused = call(plan, "-o", out)
    assert refused.exit_code == 2 and f"{done}: has no muse.lock.toml" in refused.output, refused.output
