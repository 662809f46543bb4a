"""Standard streams of a command at the very end of its process."""

from __future__ import annotations

import subprocess
import sys

PRINTS_AT_THE_END = """
import sys, threading, time
from muse_core.cli.process import outlive_output
outlive_output()
threading.Thread(target=lambda: print("x" * 2**20), daemon=True).start()
time.sleep(0.5)  # the thread now waits for a reader, in the middle of a write
"""


def test_a_thread_that_prints_at_the_end_does_not_abort_the_process() -> None:
    """With a buffered stream the interpreter aborts (SIGABRT) when it finds its lock held as it shuts down."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS_AT_THE_END], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.wait(60) == 0, process.stderr.read() if process.stderr else ""
    process.communicate()
