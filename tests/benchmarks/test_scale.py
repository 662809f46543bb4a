"""The script scale.py itself: it measures on a CPU too, and a cell that is ended leaves no process behind."""

from __future__ import annotations

import importlib.util
import json
import os
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


def test_two_processes_are_measured_and_stand_in_one_table(tmp_path: Path) -> None:
    """The script reaches into the loop and into checkpoints: what it needs is still there."""
    command = [sys.executable, str(Path(__file__).with_name("scale.py")), "--small", "--processes", "2", "--out",
               str(tmp_path), "--cells", "transformer-fsdp", "row", "--steps", "3", "--row-steps", "5"]
    done = subprocess.run(
        [*command, "--profile", "row"], capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MUSE_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:] if "|" in line]
    cells = {row[0]: row for row in rows}
    logs = "\n".join(path.read_text() for path in tmp_path.glob("log-*"))
    assert set(cells) == {"row", "transformer-fsdp"}, done.stdout + logs
    assert cells["row"][10] == "-" and float(cells["transformer-fsdp"][10]) > 0, "a checkpoint's stall"
    assert (tmp_path / "row-2.profile.txt").read_text()
    rates = {row["step"]: row["tokens_per_second"] for row in map(json.loads, (tmp_path / "row-2" / "metrics.jsonl").open())
             if row["event"] == "train"}
    measured = json.loads((tmp_path / "row-2" / "cell.json").read_text())["tokens_per_second"]
    assert measured == rates[2], "the profiler slows the last three of five steps, and the first warms up"
