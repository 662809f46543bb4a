"""Requests to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from muse_core.training.stop import Stop


def test_signal_becomes_a_flag_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop(None) as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM and stop.interrupted and stop.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_time_is_a_request_and_no_interruption() -> None:
    assert Stop(1e-9).requested and not Stop(1e-9).interrupted
    assert not Stop(1000.0).requested and not Stop(None).requested


def signalled(*lines: str) -> subprocess.CompletedProcess[str]:
    """A process that sends itself signals inside a Stop."""
    body = "".join(f"    {line}\n" for line in lines)
    program = (
        "import os, signal, time\nfrom muse_core.training.stop import Stop, IMPATIENCE\n"
        f"kill = lambda name: os.kill(os.getpid(), getattr(signal, name))\nwith Stop(None) as stop:\n{body}"
        "    print(stop.signal, flush=True)\n"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)


def test_the_same_signal_again_ends_at_once() -> None:
    done = signalled("kill('SIGINT')", "print('saving', flush=True)", "time.sleep(1.2 * IMPATIENCE)", "kill('SIGINT')",
                     "time.sleep(60)")
    assert done.returncode == 130 and done.stdout == "saving\n" and not done.stderr


@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_one_request_that_arrives_twice_is_one_request(second: str) -> None:
    """A launcher sends SIGINT and then SIGTERM, or one signal to a process and to its group."""
    done = signalled("kill('SIGINT')", f"kill('{second}')")
    assert done.returncode == 0 and done.stdout == f"{int(signal.SIGINT)}\n"


def test_another_signal_does_not_end_at_once_however_late() -> None:
    done = signalled("kill('SIGINT')", "time.sleep(1.2 * IMPATIENCE)", "kill('SIGTERM')")
    assert done.returncode == 0 and done.stdout == f"{int(signal.SIGINT)}\n"


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    program = (
        "import os, signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from muse_core.cli.errors import ended_by_signals\nfrom muse_core.training.stop import Stop\n"
        "with ended_by_signals(), Stop(None) as stop:\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n    print(stop.signal)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0 and done.stdout == "None\n"
