"""C1: killed at random moments and at every step of a commit, a run loses nothing and computes the same numbers.

The experiment runs in a process of its own, whose children it kills.
"""

from __future__ import annotations

import re
import subprocess
import sys

from muse_core.testing.reliability import kills
from muse_core.training.faults import POINTS


def test_kills_lose_nothing_and_a_fifth_of_them_hits_a_commit():
    command = [sys.executable, "-m", kills.__name__, "--kills", "150", "--seed", "20260101"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    summary = (
        r"seed \d+: (\d+) kills, (\d+) inside a commit, (\d+) runs finished, 0 problems\n"
        r"(\d+) kills at named points of a commit, 0 problems\n"
    )
    found = re.fullmatch(summary, done.stdout)
    assert found, done.stdout + done.stderr
    hit, inside, finished, points = map(int, found.groups())
    assert hit == 150
    assert inside >= 30
    assert finished >= 1
    assert points == sum(point.startswith("commit.") for point in POINTS) >= 6
    assert done.returncode == 0
