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

import pytest

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
    sys.path.insert(0, str(Path(__file__).parent))  # where a script finds what lies beside it
    try:
        found.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


TOOL = """#!/bin/sh
echo asked >> {asked}
if [ $(wc -l < {asked}) -gt {until} ]; then echo 3; else echo 20480; fi
echo 7
"""


@pytest.mark.parametrize("until", [1, 1000])
def test_a_cell_waits_for_gpus_that_others_hold_and_says_so_where_they_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], until: int
) -> None:
    asked = tmp_path / "asked"
    tool = tmp_path / "nvidia-smi"
    tool.write_text(TOOL.format(asked=asked, until=until))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    script().emptied("0,1", 3.0 if until > 1 else 60.0)
    said = capsys.readouterr().out
    assert len(asked.read_text().splitlines()) > 1
    assert said == ("" if until == 1 else "the GPUs are not empty after 3 s: 20.0, 0.0 GiB are in use\n")


def test_the_table_has_the_medians_of_all_repeats_and_their_range(tmp_path: Path) -> None:
    one = {"cell": "row-recorded", "processes": 2, "step": 1.0, "stall": None, "write": None, "held": 1.0, "peak": 2.0,
           "flops": 1.0, "device": "cpu", "parameters": 10**6, "loss": 2.5, "beside": 0}
    for repeat, speed in enumerate((100.0, 900.0, 300.0)):
        folder = tmp_path / "row-recorded-2" / str(repeat)
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(json.dumps(one | {"tokens_per_second": speed, "beside": repeat * 2**30}))
    row = [cell.strip() for cell in script().table(tmp_path).splitlines()[2].strip("|").split("|")]
    assert row[:6] == ["row-recorded", "1.0", "2", "300", "100 - 900", "3"] and row[-1] == "2.0"


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


def test_two_processes_are_measured_and_stand_in_one_table(tmp_path: Path, cache: Path) -> None:
    """The script reaches into the loop and into checkpoints: what it needs is still there."""
    command = [sys.executable, str(Path(__file__).with_name("scale.py")), "--small", "--processes", "2", "--out",
               str(tmp_path), "--cells", "transformer-fsdp", "row", "--steps", "3", "--row-steps", "5"]
    done = subprocess.run(
        [*command, "--profile", "row"], capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MUSE_CACHE": str(cache)},
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:] if "|" in line]
    cells = {row[0]: row for row in rows}
    logs = "\n".join(path.read_text() for path in tmp_path.glob("log-*"))
    assert set(cells) == {"row", "transformer-fsdp"}, done.stdout + logs
    assert cells["row"][12] == "-" and float(cells["transformer-fsdp"][12]) > 0, "a checkpoint's stall"
    assert (tmp_path / "row-2.profile.txt").read_text()
    lines = (tmp_path / "row-2" / "0" / "metrics.jsonl").read_text().splitlines()
    rates = {row["step"]: row["tokens_per_second"] for row in map(json.loads, lines) if row["event"] == "train"}
    measured = json.loads((tmp_path / "row-2" / "0" / "cell.json").read_text())["tokens_per_second"]
    assert measured == rates[2], "the profiler slows the last three of five steps, and the first warms up"
