"""C1: killed at random moments and at every step of a commit, a run loses nothing and computes the same numbers.

The experiment runs in a process of its own, whose children it kills.
"""

from __future__ import annotations

import re
import sys

import pytest

from muse_core.fault_injection import POINTS
from muse_core.selftest.reliability import kills
from muse_core.testing import warm

pytestmark = pytest.mark.promise("C1")


def test_kills_lose_nothing_and_a_fifth_of_them_hits_a_commit(trial):
    number = trial.size(150, 1000)
    command = [sys.executable, "-m", kills.__name__, "--kills", str(number), "--seed", str(trial.seed)]
    done = warm.run(command, capture_output=True, text=True, timeout=trial.size(500, 3600))
    summary = (
        r"seed \d+: (\d+) kills, (\d+) inside a commit, (\d+) runs finished, 0 problems\n"
        r"(\d+) kills at named points of a commit, 0 problems\n"
    )
    found = re.fullmatch(summary, done.stdout)
    assert found, done.stdout + done.stderr
    hit, inside, finished, points = map(int, found.groups())
    assert hit == number
    assert inside >= number / 5
    assert finished >= 1
    assert points == sum(point.startswith("commit.") for point in POINTS) >= 6
    assert done.returncode == 0
    trial.say(f"{hit} kills, {inside} inside a commit, {points} at named points, 0 problems")
