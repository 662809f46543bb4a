"""C9: a run of several processes of which one is lost ends, all of it, within a minute, and names it.

The experiment runs in a process of its own, which forks the others.
"""

from __future__ import annotations

import re
import sys

import pytest

from muse_core.selftest.reliability import processes
from muse_core.testing import warm

pytestmark = pytest.mark.promise("C9")


def test_a_lost_process_ends_all_and_is_named(trial):
    number = trial.size(4, 40)
    command = [sys.executable, "-m", processes.__name__, "--losses", str(number), "--seed", str(trial.seed)]
    done = warm.run(command, capture_output=True, text=True, timeout=trial.size(400, 4000))
    assert re.fullmatch(r"seed \d+: (\d+) lost processes, 0 problems\n", done.stdout), done.stdout + done.stderr
    assert done.returncode == 0
    trial.say(f"{number} lost processes, 0 problems")
