"""Requests to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from muse_core.training.stop import Stop


def test_signal_becomes_a_flag_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop(None) as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM and stop.interrupted and stop.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_time_counts_over_all_attempts() -> None:
    assert Stop(10.0, already=11.0).requested
    assert not Stop(1000.0, already=11.0).requested and not Stop(10.0, already=11.0).interrupted


def test_second_signal_ends_at_once() -> None:
    program = (
        "import os, signal, time\nfrom muse_core.training.stop import Stop\n"
        "with Stop(None):\n    os.kill(os.getpid(), signal.SIGINT)\n    print('saving', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert done.returncode == 130 and done.stdout == "saving\n" and not done.stderr
