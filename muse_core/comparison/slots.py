"""Runs as processes, several at a time, until they are done or the time is up. Imports no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from muse_core.comparison.cells import FAILED, Cell

INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)
PAUSE = 0.2
GRACE = 60.0
"""Seconds that a run has for its checkpoint before it is killed; it is then continued from the one before."""


@attrs.define
class Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    slot: int
    log: Any
    began: float


@attrs.define
class Slots:
    """``count`` processes at a time, dealt over ``gpus``; ``say`` is told of every beginning and end."""

    count: int
    gpus: Sequence[str]
    say: Callable[[str], None]
    deadline: float | None = None
    """Value of ``time.monotonic()`` at which running ones are asked to save and leave."""
    running: list[Running] = attrs.field(factory=list)

    def work(self, left: Callable[[], list[Cell]], finished: Callable[[], None]) -> None:
        """Runs what ``left()`` lists, asked again after each end, because a sweep decides what comes next. Calls
        ``finished`` after each end. Returns when nothing is left or the deadline has passed."""
        try:
            while True:
                if self._late():
                    self.say("the time is up: saving what runs")
                    return
                busy = {one.cell.path for one in self.running}
                for cell in left():
                    if len(self.running) == self.count:
                        break
                    if cell.path not in busy:
                        self._begin(cell)
                if not self.running:
                    return
                while not self._ended() and not self._late():
                    time.sleep(PAUSE)
                finished()
        finally:
            self._stop()
            finished()

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _begin(self, cell: Cell) -> None:
        going_on = cell.started()
        command = [sys.executable, "-m", "muse_core.cli.run"]
        if going_on:
            command += ["--resume", str(cell.path)]
        else:
            command += [str(cell.recipe), "--run-dir", str(cell.path)]
            command += [part for text in cell.overrides for part in ("--set", text)]
        slot = next(n for n in range(self.count) if n not in {one.slot for one in self.running})
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.count)))
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        cell.path.mkdir(parents=True, exist_ok=True)
        log = (cell.path / "log.txt").open("ab")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        self.running.append(Running(cell, process, slot, log, time.monotonic()))
        self.say(f"{cell.name}: {'goes on' if going_on else 'begins'}")

    def _ended(self) -> bool:
        """Takes those out that have ended; whether there was one."""
        ended = [one for one in self.running if one.process.poll() is not None]
        for one in ended:
            self.running.remove(one)
            one.log.close()
            self._report(one)
        return bool(ended)

    def _report(self, one: Running) -> None:
        code = one.process.returncode
        seconds = f"{time.monotonic() - one.began:,.0f} s"
        if code == 0:
            self.say(f"{one.cell.name}: done in {seconds}")
        elif code in INTERRUPTED:
            self.say(f"{one.cell.name}: stopped after {seconds}, to be continued")
        elif code == -signal.SIGKILL:
            self.say(f"{one.cell.name}: killed after {seconds}; it goes on from its last checkpoint")
        else:
            reason = f"exit code {code}: {_last_line(one.cell)}"
            (one.cell.path / FAILED).write_text(reason + "\n", encoding="utf-8")
            self.say(f"{one.cell.name}: failed after {seconds}, {reason}")

    def _stop(self) -> None:
        """Ask all to save and leave, and wait for it."""
        for one in self.running:
            one.process.send_signal(signal.SIGTERM)
        patience = time.monotonic() + GRACE
        for one in self.running:
            try:
                one.process.wait(max(0.0, patience - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
        self._ended()


def _last_line(cell: Cell) -> str:
    lines = (cell.path / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing was printed"
