"""GPUs and processes of scale.py: which GPUs there are, whether others use them, and an end of all that was started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

EMPTY = 2**30
"""Bytes of a GPU that may be in use where it counts as empty: a driver keeps some."""


class Beside:
    """What other processes hold of a GPU: what is in use, less what this process has taken by torch, and less what it
    had of context and communication at the start, when the one that started it had looked."""

    def __init__(self, device: int, patience: float):
        import torch

        self.device, self.patience = device, patience if torch.cuda.is_available() else 0.0
        self.own = self._rest() if self.patience else 0

    def _rest(self) -> int:
        import torch

        free, total = torch.cuda.mem_get_info(self.device)
        return total - free - torch.cuda.memory_reserved(self.device)

    def settle(self) -> None:
        """After a cell: what it has left of communication is this process's own, up to half of what counts as empty."""
        if self.patience:
            self.own = min(self._rest(), self.own + EMPTY // 2)

    def wait(self) -> int:
        """Bytes once they are few, or after so long."""
        until = time.monotonic() + self.patience
        while self.patience:
            found = max(0, self._rest() - self.own)
            if found <= EMPTY or time.monotonic() > until:
                return found
            time.sleep(1)
        return 0


def emptied(gpus: str | None, patience: float) -> None:
    """Wait until the GPUs are empty before a process is started on them; say so where they are not."""
    until = time.monotonic() + patience
    while True:
        used = in_use(gpus)
        if not used or max(used) <= EMPTY:
            return
        if time.monotonic() > until:
            told = ", ".join(f"{one / 2**30:.1f}" for one in used)
            print(f"the GPUs are not empty after {patience:.0f} s: {told} GiB are in use", flush=True)
            return
        time.sleep(1)


def in_use(gpus: str | None) -> list[int]:
    """Bytes in use of these GPUs, or all; none where the driver's tool is not there to ask."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run([*command, *(["-i", gpus] if gpus else [])], capture_output=True, text=True)
    except FileNotFoundError:
        return []
    return [int(line) * 2**20 for line in said.stdout.split() if line.isdigit()]


def end(running: Any) -> None:
    """The process and all that it started, also in sessions of their own, as the launcher's processes are."""
    members = started_by(running.pid)
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGTERM)  # on which torchrun ends its processes
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(timeout=6)
    for member in {*members, *started_by(running.pid), running.pid}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    running.wait()


def started_by(process: int) -> set[int]:
    """Processes that it started, and theirs."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, new = set(), {process}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def devices() -> list[str | None]:
    """Numbers of the GPUs, in a process of its own: this one holds none."""
    count = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"], capture_output=True, text=True
    )
    visible: list[str | None] = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return visible or [str(number) for number in range(int(count.stdout or 0))]
