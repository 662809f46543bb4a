"""M3: healthy runs are left alone, on a model of what their losses look like."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.promise("M3")
SIMULATION = "muse_rollback.simulate"


def test_false_alarms_are_fewer_than_one_in_a_hundred_thousand_steps(trial):
    if importlib.util.find_spec(SIMULATION.partition(".")[0]) is None:
        pytest.skip("muse-rollback is not installed")
    steps = trial.size(20_000, 1_000_000)
    options = ["--steps", str(steps), "--seed", str(trial.seed), "--trials", str(trial.size(10, 500))]
    done = subprocess.run([sys.executable, "-m", SIMULATION, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = re.findall(r"^([\w-]+) +(\d+) false alarms, +([\d.]+) in 100,000 steps", done.stdout, re.MULTILINE)
    (_, ours, rate), (_, theirs, other) = counts
    assert int(ours) <= steps / 100_000, done.stdout
    assert int(theirs) > 1000 * max(int(ours), 1) * steps / 1_000_000
    trial.say(f"{ours} in {steps:,} steps; the 5 % rule {float(other):,.0f} in 100,000")
