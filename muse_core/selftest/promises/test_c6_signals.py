"""C6: SIGTERM or Ctrl-C at any moment, also in an evaluation or before the first step, ends with 143 or 130 within 20
seconds, and from the first step on with a committed checkpoint. A second signal ends at once.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from muse_core.recipe import to_toml
from muse_core.selftest.promises.runs import events, recipe_table, write_text
from muse_core.storage.checkpoint import Checkpoints
from muse_core.testing import warm

pytestmark = pytest.mark.promise("C6")

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
PATIENCE = 20
"""Seconds."""
CROWDED = 90
"""Seconds to wait for where others use the processors too: the tests of the project state no times."""


@pytest.fixture
def recipe(tmp_path):
    """A run whose first evaluation lasts very much longer than everything else."""
    endless = {"every": 2, "tokens": 10**9, "final_tokens": 10**9}
    write_text(tmp_path / "page.txt", paragraphs=4000)
    table = recipe_table(tmp_path, train={"steps": 3, "batch_size": 1, "micro_batch": 1}, evaluate=endless)
    (tmp_path / "recipe.toml").write_text(to_toml(table))
    return tmp_path / "recipe.toml"


def start(*arguments):
    command = [sys.executable, "-c", "from muse_core.cli.run import main; main()", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return warm.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def ended(process, number, trial):
    """Exit code and stderr after a signal; a process that takes longer than promised is killed and fails the test."""
    sent = time.monotonic()
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=PATIENCE if trial.long else CROWDED)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, err, time.monotonic() - sent


def until(path, text, process):
    deadline = time.monotonic() + 120
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("number", CODES)
def test_a_signal_in_an_evaluation(recipe, tmp_path, number, trial):
    run = tmp_path / "run"
    process = start(recipe, "--run-dir", run, "--set", "data.validation=0.45")
    until(run / "metrics.jsonl", '"step":2', process)
    code, err, seconds = ended(process, number, trial)
    assert code == CODES[number] and "--resume" in err and "Traceback" not in err, err
    assert '"event":"eval"' not in (run / "metrics.jsonl").read_text(), "the evaluation had ended"
    found = Checkpoints(run).newest()
    assert found is not None and found[0].step == 2
    assert events(run, "interrupted")[0]["signal"] == number
    trial.say(f"exit code {code} after {seconds:.1f} s, step 2 committed")


@pytest.mark.parametrize("number", CODES)
def test_a_signal_before_there_is_anything_to_save(recipe, tmp_path, number, trial):
    """While text and model are being prepared; in the first moments Python itself does not take signals."""
    process = start(recipe, "--run-dir", tmp_path / "run")
    while not (tmp_path / "run").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    code, err, _ = ended(process, number, trial)
    assert code == CODES[number] and "Traceback" not in err, err
    assert not list((tmp_path / "run").glob("checkpoints/gen-*"))


def test_signals_at_random_moments(tmp_path, trial):
    """Long form: a run is interrupted again and again, and each time goes on where it was."""
    count = trial.size(0, 60)
    if not count:
        pytest.skip("long form only")
    chance = random.Random(trial.seed)
    table = recipe_table(tmp_path, train={"steps": 10**6}, evaluate={"every": 20, "tokens": 4000})
    (tmp_path / "recipe.toml").write_text(to_toml(table))
    run, slowest, step = tmp_path / "run", 0.0, -1
    for attempt in range(count):
        process = start(tmp_path / "recipe.toml", "--run-dir", run) if attempt == 0 else start("--resume", run)
        # The attempt's first measured row: it has done steps, and does not only say its schema.
        until(run / "metrics.jsonl", f'"attempt":{attempt + 1},"bits_per_byte"', process)
        time.sleep(chance.uniform(0, 0.5))
        number = chance.choice(list(CODES))
        code, err, seconds = ended(process, number, trial)
        assert code == CODES[number], err
        slowest = max(slowest, seconds)
        found = Checkpoints(run).newest()[0].step
        assert found > step
        step = found
    trial.say(f"{count} signals at random moments, the slowest exit after {slowest:.1f} s")
