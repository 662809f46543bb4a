"""The script scale.py itself: a cell that is ended leaves no process behind."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""
CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"


def script() -> ModuleType:
    found = importlib.util.spec_from_file_location("scale", Path(__file__).with_name("scale.py"))
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_cell_that_is_ended_leaves_no_process_behind() -> None:
    """Also one in a session of its own that ignores the signal, as a process of torchrun that compiles."""
    program = PARENT.replace("CHILD", repr(CHILD))
    running = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stdout is not None
    said = {running.stdout.readline().strip(), running.stdout.readline().strip()}
    (child,) = (int(one) for one in said - {"ready"})
    assert lives(child)
    script().end(running)
    deadline = time.monotonic() + 10
    while lives(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives(child) and running.returncode is not None
