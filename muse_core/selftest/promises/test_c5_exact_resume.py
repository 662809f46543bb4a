"""C5: stopped at any step, a run ends in the same bits: dropout, accumulation, two resumes, the end of an epoch.

Stopped after every single step and compared at each, it is by induction equal however it is stopped.
"""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch

from muse_core.data.batches import rows
from muse_core.selftest.promises.runs import StopAfter, events, loop_of, losses, recipe_table, train, write_text
from muse_core.selftest.reliability import stops
from muse_core.storage.checkpoint import Checkpoints
from muse_core.testing import warm

pytestmark = pytest.mark.promise("C5")

STEPS = 30


def hashes(folder):
    """Step → state hash of every checkpoint that is there."""
    return {one.step: one.state_hash for one in Checkpoints(folder).generations()}


@pytest.mark.parametrize("order", ["permuted", "streams"])
def test_a_run_stopped_at_every_step_is_the_run_that_was_not(tmp_path, trial, order):
    write_text(tmp_path / "page.txt", paragraphs=24)
    recipe = recipe_table(
        tmp_path,
        seed=trial.seed % 1000,
        data={"order": order},
        train={"steps": STEPS},
        checkpoint={"every": 1, "keep": STEPS + 1},
        monitors=["rollback", "gradient-safety"],
    )
    with loop_of(tmp_path / "whole", recipe) as loop:
        assert loop.data.steps_per_epoch < STEPS - 3, "the run sees no end of an epoch"
        loop.run()
    for _ in range(STEPS):
        train(tmp_path / "pieces", recipe, steps=1)
    resumed = [row["step"] for row in events(tmp_path / "pieces", "resume")]
    assert resumed == list(range(1, STEPS))
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == STEPS
    assert hashes(tmp_path / "pieces") == hashes(tmp_path / "whole") and len(hashes(tmp_path / "whole")) == STEPS + 1
    trial.say(f"{order}: {len(resumed)} stops, losses and state hashes equal at each")


def test_stops_at_random_steps_with_rarer_checkpoints(tmp_path, trial):
    """Two resumes, each from a checkpoint that was made because of the stop."""
    chance = np.random.default_rng(trial.seed)
    recipe = recipe_table(tmp_path, train={"steps": STEPS}, checkpoint={"every": 7})
    train(tmp_path / "whole", recipe)
    count = trial.size(2, 40)
    for number in range(count):
        folder = tmp_path / f"pieces-{number}"
        first, second = int(chance.integers(1, 14)), int(chance.integers(1, 14))
        train(folder, recipe, first)
        train(folder, recipe, second)
        train(folder, recipe)
        assert losses(folder) == losses(tmp_path / "whole"), (number, first, second)
        assert Checkpoints(folder).newest()[1].state_hash() == Checkpoints(tmp_path / "whole").newest()[1].state_hash()
    trial.say(f"{count} runs with two resumes each")


def test_two_processes_that_are_stopped_end_in_the_same_bits(trial):
    """Copies and divided weights; every second pair goes on with one, two or four processes from the state that was
    saved. The experiment runs in a process of its own, which forks the others."""
    number = trial.size(4, 40)
    command = [sys.executable, "-m", stops.__name__, "--runs", str(number), "--seed", str(trial.seed)]
    done = warm.run(command, capture_output=True, text=True, timeout=trial.size(400, 4000))
    assert re.fullmatch(r"seed \d+: \d+ runs of several processes stopped twice, 0 problems\n", done.stdout), (
        done.stdout + done.stderr
    )
    trial.say(f"{number} runs of several processes stopped twice, 0 problems")


def test_which_text_a_step_reads_does_not_depend_on_how_its_rows_are_dealt(tmp_path):
    """A rank that takes some rows of a batch takes the same ones whatever the others do."""
    with loop_of(tmp_path / "run", recipe_table(tmp_path, train={"batch_size": 6, "micro_batch": 3})) as loop:
        for step in (0, 5, 61):
            whole = loop.data.batch(step).inputs
            for size in (1, 2, 3):
                share = len(whole) // size
                dealt = [rows(loop.data.batch(step), rank * share, (rank + 1) * share).inputs for rank in range(size)]
                assert torch.equal(torch.cat(dealt), whole)


def test_resuming_says_from_where_and_what_is_done_again(tmp_path):
    recipe = recipe_table(tmp_path, checkpoint={"every": 4})
    with loop_of(tmp_path / "run", recipe, StopAfter(100)) as loop, pytest.raises(KeyboardInterrupt):
        loop.display.step = lambda step, row: (_ for _ in ()).throw(KeyboardInterrupt) if step == 11 else None
        loop.run()
    with loop_of(tmp_path / "run", recipe) as loop:
        said = loop.display.console.file.getvalue()
    assert "resuming from generation 3 at step 8; steps 9 to 11 were not saved and are done again" in said
    assert events(tmp_path / "run", "resume")[0]["discarded"] == [9, 11]
