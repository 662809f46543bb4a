"""How runs start and end, with real processes and real signals: whatever ends them, what was done is saved and said."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from muse_core.cli.run import main
from muse_core.metrics.jsonl import read_rows
from muse_core.storage.checkpoint import Checkpoints
from muse_core.testing import warm
from tests.commands import called

RECIPE = """\
name = "tiny"
seed = 7
data = { use = "state-of-the-union", tokenizer = "bytes" }
[model]
width = 16
depth = 1
block = ["attention", "feed-forward"]
[train]
steps = 6
batch_size = 2
sequence_length = 32
warmup_steps = 2
log_every = 1
device = "cpu"
[evaluate]
every = 3
tokens = 128
final_tokens = 256
[checkpoint]
every = 3
"""
LONG = ("--set", "train.steps=100000", "--set", "checkpoint.every=100000", "--set", "evaluate.every=100000")


@pytest.fixture(autouse=True)
def _surroundings(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MUSE_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    yield
    while STARTED:  # of a test that failed, one would train on for hours
        STARTED.pop().kill()


invoke = partial(called, main)


STARTED: list[subprocess.Popen[str]] = []


def start(*arguments: object, before: str = "", **pipes: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, after the Python code ``before``."""
    program = f"{before}\nfrom muse_core.cli.run import main\nmain()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = warm.Popen(command, text=True, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes})
    STARTED.append(process)
    return process


def wait_for(path: Path, process: subprocess.Popen[str], steps: int = 1) -> None:
    """Until so many rows of training are recorded."""
    deadline = time.monotonic() + 120
    while not (path.is_file() and path.read_text().count('"event":"train"') >= steps):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no {steps} steps in {path}"
        time.sleep(0.02)


def last_step(run: Path) -> int:
    return [row["step"] for row in read_rows(run / "metrics.jsonl") if row["event"] == "train"][-1]


def numbers(run: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(event, step) → its last row, without what differs between equal runs."""
    changing = ("sequence", "attempt", "seconds", "tokens_per_second")
    return {
        (row["event"], row.get("step", 0)): {key: value for key, value in row.items() if key not in changing}
        for row in read_rows(run / "metrics.jsonl")
    }


@pytest.mark.parametrize(
    "sent, code",
    [((signal.SIGINT, signal.SIGTERM), 130), ((signal.SIGTERM, signal.SIGTERM), 143), ((signal.SIGHUP,), 129),
     ((signal.SIGUSR1,), 138)],
)
def test_every_way_to_be_asked_saves(recipe: Path, tmp_path: Path, sent: tuple[int, ...], code: int) -> None:
    run = tmp_path / "run"
    process = start(recipe, "--run-dir", run, *LONG)
    wait_for(run / "metrics.jsonl", process)
    for number in sent:
        process.send_signal(number)
        time.sleep(0.001)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and "everything is saved" in err, (out, err)
    assert Checkpoints(run).generations()[0].step == last_step(run) > 0


@pytest.mark.parametrize("kind", ["reader gone", "full disk", "closed from the start"])
def test_a_display_that_fails_ends_no_run(recipe: Path, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    if kind == "closed from the start":
        shell = f"exec {sys.executable} -m muse_core.cli.run {recipe} --run-dir {run} >&- 2>&-"
        assert subprocess.run(["sh", "-c", shell]).returncode == 0
    elif kind == "full disk":
        with open("/dev/full", "w") as full:
            assert start(recipe, "--run-dir", run, stdout=full, stderr=full).wait(120) == 0
    else:
        process = start(recipe, "--run-dir", run, "--set", "train.steps=60")
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(120) == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == last_step(run)
    assert list(read_rows(run / "events.jsonl"))


def test_the_quota_is_foreseen_with_the_moments(recipe: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert invoke(recipe, "--run-dir", first).exit_code == 0
    start, end = (
        sum(file.stat().st_size for file in sorted((first / "checkpoints").glob("gen-*"))[which].iterdir())
        for which in (0, -1)
    )
    assert end > 2 * start, "the moments of AdamW are two more copies of the weights"
    quota = 8 * (2 * start + 2**16)  # eight generations: room for those of the start, not for those with moments
    refused = invoke(recipe, "--run-dir", tmp_path / "second", "--set", f"checkpoint.quota={quota}")
    assert refused.exit_code == 3 and "the quota is" in refused.output and not (tmp_path / "second").exists()
    room = 8 * (end + 2**17)
    assert invoke(recipe, "--run-dir", tmp_path / "third", "--set", f"checkpoint.quota={room}").exit_code == 0


@pytest.mark.parametrize("block", ['["attention", "feed-forward"]', '[{ use = "fast-weights", heads = 1 }]'])
def test_the_quota_is_foreseen_with_the_carried_states(recipe: Path, tmp_path: Path, block: str) -> None:
    """A23: streams carry states that the first checkpoint does not have; attention's grow with every step."""
    streams = ("--set", 'data.order="streams"', "--set", f"model.block={block}", "--set", "train.batch_size=8",
               "--set", "model.width=64", "--set", "train.steps=12", "--set", "evaluate.every=100")
    first = tmp_path / "first"
    assert invoke(recipe, "--run-dir", first, *streams).exit_code == 0
    found = Checkpoints(first).newest()
    assert found is not None
    last = sum(file.stat().st_size for file in found[0].path.iterdir())
    carried = sum(value.nbytes for name, value in found[1].state.items() if name.startswith("carry/"))
    assert carried > 2**16, "or else the room below would be enough"
    without = 8 * (last - carried + 2**16)  # eight generations at most, with moments, without carried states
    refused = invoke(recipe, "--run-dir", tmp_path / "second", *streams, "--set", f"checkpoint.quota={without}")
    assert refused.exit_code == 3 and "the quota is" in refused.output and not (tmp_path / "second").exists()
    room = 8 * (last + 2**17)
    assert invoke(recipe, "--run-dir", tmp_path / "third", *streams, "--set", f"checkpoint.quota={room}").exit_code == 0


KILLED_AFTER_COMMIT = """
import os, signal
from muse_core.fault_injection import installed
count = 0
def kill(value):
    global count
    count += 1
    if count == 2:  # the first commit is that of the start
        os.kill(os.getpid(), signal.SIGKILL)
    return value
context = installed({"commit.after_retention": kill})
context.__enter__()
"""


def test_an_evaluation_that_was_due_at_a_kill_is_made_on_resume(recipe: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert start(recipe, "--run-dir", whole).wait(120) == 0
    killed = start(recipe, "--run-dir", run, before=KILLED_AFTER_COMMIT)
    assert killed.wait(120) == -signal.SIGKILL
    assert last_step(run) == 3 and ("eval", 3) not in numbers(run)
    assert start("--resume", run).wait(120) == 0
    assert numbers(run) == numbers(whole) and ("eval", 3) in numbers(run)
    again = [row for row in read_rows(run / "metrics.jsonl") if row["event"] == "eval"]
    assert start("--resume", run).wait(120) == 0
    assert [row for row in read_rows(run / "metrics.jsonl") if row["event"] == "eval"] == again


def test_a_run_that_goes_on_behind_a_new_architecture_tells_what_was_trained_before(
    recipe: Path, tmp_path: Path
) -> None:
    """As after a kill in the final evaluation: the last stage is done, and no stage that trains is begun again."""
    (tmp_path / "second.toml").write_text(RECIPE)
    run = tmp_path / "run"
    recipe.write_text('stages = [{ use = "train" }, { use = "convert", to = "second.toml" }]\n' + RECIPE)
    assert invoke(recipe, "--run-dir", run).exit_code == 0
    whole = json.loads((run / "summary.json").read_text())
    assert (whole["steps"], whole["planned_steps"], whole["train_tokens"]) == (6, 6, 6 * 2 * 32)
    (run / "summary.json").unlink()
    resumed = invoke("--resume", run)
    assert resumed.exit_code == 0 and "steps      6 of 6" in resumed.output, resumed.output
    again = json.loads((run / "summary.json").read_text())
    assert again | {"seconds": 0} == whole | {"seconds": 0}


AT_THE_END = {
    "summary": ("from muse_core.training.run import Run as place", "_summary", 143),
    "report": ("import muse_core.cli.launch as place", "report_summary", 143),
}


@pytest.mark.parametrize("where", AT_THE_END)
def test_a_signal_in_the_last_moments_ends_in_the_same_way(recipe: Path, tmp_path: Path, where: str) -> None:
    place, name, code = AT_THE_END[where]
    before = (
        f"import os, signal\n{place}\nreal = place.{name}\n"
        f"def late(*given):\n    os.kill(os.getpid(), signal.SIGTERM)\n    return real(*given)\nplace.{name} = late\n"
    )
    process = start(recipe, "--run-dir", tmp_path / "run", before=before)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code and "Traceback" not in err, (out, err)
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 6


def test_a_signal_while_the_interpreter_shuts_down_changes_nothing(recipe: Path, tmp_path: Path) -> None:
    before = (
        "import os\nclass Late:\n    def __del__(self, kill=os.kill, process=os.getpid()):\n"
        "        kill(process, 15)  # when the handlers of Python are gone\nlate = Late()\n"
    )
    process = start(recipe, "--run-dir", tmp_path / "run", before=before)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, (out, err)


def _move(run: Path, elsewhere: Path) -> None:
    run.rename(elsewhere)


def _remove(run: Path, elsewhere: Path) -> None:
    shutil.rmtree(run, ignore_errors=True)
    shutil.rmtree(run, ignore_errors=True)


def _unlock(run: Path, elsewhere: Path) -> None:
    (run / "run.lock").unlink()


def _lead_out(run: Path, elsewhere: Path) -> None:
    elsewhere.mkdir()
    (run / "checkpoints").rename(elsewhere.with_name("before"))
    (run / "checkpoints").symlink_to(elsewhere)


@pytest.mark.parametrize(
    "change, said",
    [(_move, "moved or removed"), (_remove, "moved or removed"), (_unlock, "run.lock: was removed or replaced"),
     (_lead_out, "outside the run directory")],
)
def test_a_directory_that_is_taken_away_is_noticed_at_the_next_commit(
    recipe: Path, tmp_path: Path, change: Callable[[Path, Path], None], said: str
) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    process = start(recipe, "--run-dir", run, *LONG)
    wait_for(run / "metrics.jsonl", process)
    change(run, elsewhere)
    process.send_signal(signal.SIGTERM)  # asks for a commit
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3 and said in err and "Traceback" not in err, (out, err)
    if change in (_move, _remove):
        assert not run.exists(), "a folder was made anew"
    if change is _lead_out:
        assert list(elsewhere.iterdir()) == []


def test_records_ahead_of_lost_checkpoints_are_said_and_refused(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert invoke(recipe, "--run-dir", run).exit_code == 0
    whole = numbers(run)
    shutil.rmtree(run / "checkpoints")
    refused = invoke("--resume", run)
    assert refused.exit_code == 3 and "metrics.jsonl has 6 steps" in refused.output and "--restart" in refused.output
    assert invoke("--resume", run, "--restart").exit_code == 0
    (event,) = [row for row in read_rows(run / "events.jsonl") if row["event"] == "restart"]
    assert event["discarded"] == [1, 6] and numbers(run) == whole


def test_the_time_limit_is_that_of_an_attempt(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun = invoke(recipe, "--run-dir", run, "--set", "train.max_seconds=1e-9")
    assert begun.exit_code == 0 and "stopped by train.max_seconds; go on with muse-run --resume" in begun.output
    for done in (2, 3):
        assert invoke("--resume", run).exit_code == 0
        summary = json.loads((run / "summary.json").read_text())
        assert summary["steps"] == done and summary["stopped_by_time"]


def test_a_launcher_that_does_not_say_which_process_this_is_is_refused(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = invoke(recipe, "--run-dir", tmp_path / "run")
    assert refused.exit_code == 2 and "start several processes with torchrun" in refused.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong, said",
    [('model.block=[{use="attention",name="forward"},"feed-forward"]', "'forward' cannot name a layer"),
     ("kernels.backend=[]", "backend = [] names no kernel backend")],
)
def test_the_real_cause_is_said(recipe: Path, wrong: str, said: str) -> None:
    refused = invoke(recipe, "--dry-run", "--set", wrong)
    assert refused.exit_code == 2 and said in refused.output, refused.output
