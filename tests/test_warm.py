"""A process of ``muse_core.testing.warm`` is what ``subprocess`` starts, but for libraries imported already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from muse_core.testing import warm

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere it is subprocess itself")
TELLS = """
import os, signal, sys
print(os.getppid(), sys.argv, os.getcwd(), os.environ.get("SAID"), sys.path[:2], sys.stdin.read(), __name__)
print(sys.stdout.encoding, sys.stderr.errors, sys.stdout.line_buffering, sys.dont_write_bytecode)
print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGPIPE), os.listdir("/proc/self/fd"))
print([name for name in sys.modules if "muse" in name])
print("not so", file=sys.stderr)
"""
ENDS = ["pass", "raise SystemExit(5)", "raise SystemExit('said')", "1 / 0", "raise KeyboardInterrupt",
        "import os; os.kill(os.getpid(), 9)", "import os; os._exit(7)", "import atexit; atexit.register(print, 'last')",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('behind'))).start()"]


@pytest.fixture(params=["-c", "-m", "file"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    (tmp_path / "tells.py").write_text(TELLS)
    forms = {"-c": ["-c", TELLS], "-m": ["-m", "tells"], "file": ["tells.py"]}
    return [sys.executable, *forms[request.param], "a", "é"]


def test_it_finds_the_same_around_it(command: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"SAID": "ü", "PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    given = {"cwd": tmp_path, "env": environment, "input": "in", "capture_output": True, "text": True, "timeout": 300}
    ours, theirs = warm.run(command, **given), subprocess.run(command, **given)
    assert theirs.stderr == "not so\n"
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


@pytest.mark.parametrize("code", ENDS)
def test_it_ends_as_an_interpreter_does(code: str) -> None:
    given = {"capture_output": True, "text": True, "timeout": 300}
    ours, theirs = (run([sys.executable, "-c", code], **given) for run in (warm.run, subprocess.run))
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    assert ours.stderr.splitlines()[-2:] == theirs.stderr.splitlines()[-2:], "the server's frames stand before these"


def test_its_pid_takes_signals_and_is_a_session_of_its_own_where_asked() -> None:
    code = "import time; print('here', flush=True); time.sleep(600)"
    for number in (signal.SIGINT, signal.SIGTERM):
        with warm.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                        start_new_session=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "here\n"
            assert os.getsid(process.pid) == process.pid and process.poll() is None
            process.send_signal(number)
            assert process.wait(60) == -number


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="torch takes no more threads than there are processors")
def test_a_variable_that_is_read_at_the_start_has_a_server_of_its_own() -> None:
    ask = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    for threads in ("1", "2"):
        done = warm.run(ask, env=os.environ | {"OMP_NUM_THREADS": threads}, capture_output=True, text=True, timeout=300)
        assert done.stdout == f"{threads}\n", done.stderr


@pytest.mark.parametrize("arguments, options", [
    (["sh", "-c", "true"], {}), ([sys.executable, "-I", "-c", "pass"], {}),
    ([sys.executable, "-c", "pass"], {"preexec_fn": os.getpid}),
])
def test_what_it_cannot_start_is_refused(arguments: list[str], options: dict) -> None:
    with pytest.raises(ValueError, match="start it with subprocess"):
        warm.Popen(arguments, **options)
