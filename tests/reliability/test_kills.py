"""C1: killed at random moments and at every step of a commit, a run loses nothing and computes the same numbers.

The experiment runs in a process of its own, whose children it kills.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from muse_core.testing.reliability import kills
from muse_core.training.faults import POINTS

COMMIT_POINTS = sorted(point for point in POINTS if point.startswith("commit."))


def test_random_kills_lose_nothing_and_a_fifth_of_them_hits_a_commit():
    command = [sys.executable, "-m", kills.__name__, "--kills", "150", "--seed", "20260101"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    found = re.fullmatch(
        r"seed \d+: (\d+) kills, (\d+) inside a commit, (\d+) runs finished, 0 problems\n", done.stdout
    )
    assert found, done.stdout + done.stderr
    hit, inside, finished = map(int, found.groups())
    assert hit == 150
    assert inside >= 30
    assert finished >= 1
    assert done.returncode == 0


@pytest.mark.parametrize("point", COMMIT_POINTS)
def test_a_kill_at_any_point_of_a_commit_changes_nothing(tmp_path, point):
    script = (
        "import sys, pathlib, torch; torch.set_num_threads(1); from muse_core.testing.reliability.kills import kill_at; "
        "print(kill_at(pathlib.Path(sys.argv[1]), sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run"), point], capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
