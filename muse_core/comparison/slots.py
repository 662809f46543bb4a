"""Runs as processes, several at a time, until they are done or the time is up. Imports no torch."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from muse_core.comparison.cells import FAILED, Cell
from muse_core.errors import OutOfMemory
from muse_core.recipe.lock import GO_ON
from muse_core.storage.disk import Disk, storage_errors, write_file_atomically
from muse_core.training.stop import SIGNALS, Stop

INTERRUPTED = tuple(code for number in SIGNALS for code in (128 + number, -number))
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
PAUSE = 0.2
PULSE = 60.0
"""Seconds after which is told how far the running ones are."""
GRACE = 60.0
"""Seconds that a run has for its checkpoint before it is killed; it is then continued from the one before."""
MOST_TRIES = 3
"""Attempts in one call that may end without a new checkpoint, unfinished, before the run counts as failed."""


@attrs.define
class Running:
    cell: Cell
    process: Any
    """A ``subprocess.Popen``, or what has as much of it as is used here."""
    slot: int
    began: float
    newest: tuple[str, ...]
    """What was saved when this attempt began."""
    printed: int
    """Size of the log then, in bytes."""
    told: float
    """When was last told how far it is."""
    others: int = 0
    """The most runs that have shared its GPU in this attempt, or the host where no GPUs are named."""


def begin_here(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process of this host, which adds to ``log`` what it prints."""
    with log.open("ab") as said:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=os.environ | environment,
            start_new_session=True,  # Ctrl-C reaches the comparison alone, which asks each run once
        )


@attrs.define
class Slots:
    """``count`` processes at a time, dealt over ``gpus``; ``say`` is told of every beginning and end. ``stop`` says
    when running ones are asked to save and leave. ``launch`` begins a command: here, or as a job elsewhere.

    A run that runs out of memory beside others has not failed: it waits until fewer share its GPU, and from then on
    fewer do. A job has its GPU for itself."""

    count: int
    gpus: Sequence[str]
    say: Callable[[str], None]
    stop: Stop = attrs.field(factory=lambda: Stop(None))
    launch: Callable[[Sequence[str], Path, Mapping[str, str]], Any] = begin_here
    progress: Callable[[], str] = lambda: ""
    """Said behind the end of a run: how many are done and left."""
    running: list[Running] = attrs.field(factory=list)
    _most: dict[str, int] = attrs.field(factory=dict)
    """GPU → runs at a time there, where one ran out of memory beside others."""
    _elsewhere: set[Path] = attrs.field(factory=set)
    _tries: Counter[Path] = attrs.field(factory=Counter)

    def work(self, left: Callable[[], list[Cell]], finished: Callable[[], None]) -> None:
        """Runs what ``left()`` lists, asked again after each end, because a sweep decides what comes next. Calls
        ``finished`` after each end. Returns when nothing is left that is not in another process's hands, or when a stop
        is requested."""
        try:
            while True:
                if self.stop.requested:
                    self.say("interrupted: saving what runs" if self.stop.interrupted
                             else "the time is up: saving what runs")
                    return
                self._fill(left())
                if not self.running:
                    return
                while not self._ended() and not self.stop.requested:
                    self._tell()
                    time.sleep(PAUSE)
                finished()
        finally:
            self._save_all()
            finished()

    def _fill(self, cells: Sequence[Cell]) -> None:
        """Begins runs until the slots are full, without those that another process works on."""
        busy = {one.cell.path for one in self.running}
        for cell in cells:
            slot = self._free()
            if slot is None:
                return
            if cell.path in busy or cell.path in self._elsewhere:
                continue
            if cell.in_use():
                self._leave(cell)
                continue
            self._begin(cell, slot)

    def _free(self) -> int | None:
        """A slot whose GPU has room for one more run; None where there is none."""
        taken = {one.slot for one in self.running}
        return next((slot for slot in range(self.count) if slot not in taken and self._has_room(self._gpu(slot))), None)

    def _has_room(self, gpu: str) -> bool:
        return len(self._on(gpu)) < self._most.get(gpu, self.count)

    def _on(self, gpu: str) -> list[Running]:
        return [one for one in self.running if self._gpu(one.slot) == gpu]

    def _gpu(self, slot: int) -> str:
        return self.gpus[slot % len(self.gpus)] if self.gpus else ""

    def _leave(self, cell: Cell) -> None:
        self._elsewhere.add(cell.path)
        self.say(f"{cell.name}: another process works on it; it is left to it in this call")

    def _begin(self, cell: Cell, slot: int) -> None:
        going_on = cell.started()
        command = [sys.executable, "-m", "muse_core.cli.run"]
        if going_on:
            command += ["--resume", str(cell.path)]
        else:
            command += [str(cell.recipe), "--run-dir", str(cell.path)]
            command += [part for text in cell.overrides for part in ("--set", text)]
        environment = {}
        if self.launch is begin_here and "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.count))
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpu(slot)
        cell.path.mkdir(parents=True, exist_ok=True)
        log = cell.path / "log.txt"
        printed = log.stat().st_size if log.exists() else 0
        newest = cell.newest()
        process = self.launch(command, log, environment)
        now = time.monotonic()
        self.running.append(Running(cell, process, slot, now, newest, printed, now))
        if self.launch is begin_here:
            sharing = self._on(self._gpu(slot))
            for one in sharing:
                one.others = max(one.others, len(sharing) - 1)
        self.say(f"{cell.name}: {'goes on' if going_on else 'begins'}")

    def _tell(self) -> None:
        """What a run of minutes printed last, now and then."""
        for one in self.running:
            if time.monotonic() - one.told > PULSE:
                one.told = time.monotonic()
                self.say(f"{one.cell.name}: {_last_line(one)}")

    def _ended(self) -> bool:
        """Takes those out that have ended; whether there was one."""
        ended = [one for one in self.running if one.process.poll() is not None]
        for one in ended:
            self.running.remove(one)
            self._report(one)
        return bool(ended)

    def _report(self, one: Running) -> None:
        code = one.process.returncode
        cell, seconds = one.cell, f"{time.monotonic() - one.began:,.0f} s"
        if cell.summary() is not None:
            (cell.path / FAILED).unlink(missing_ok=True)
            self.say(f"{cell.name}: done in {seconds}{self.progress()}")
        elif self.stop.requested and code in (*INTERRUPTED, *KILLED):  # asked, or after ``GRACE``
            self.say(f"{cell.name}: stopped after {seconds}, to be continued")
        elif one.others and code in (OutOfMemory.exit_code, *KILLED):
            self._make_room(one, seconds)
        elif code in (0, *INTERRUPTED, *KILLED):
            self._try_again(one, seconds)
        elif cell.in_use():
            self._leave(cell)
        else:
            self._fail(cell, f"exit code {code}: {_drift(one) or _last_line(one)}", seconds)

    def _make_room(self, one: Running, seconds: str) -> None:
        """Fewer at a time where this one ran out of memory. Each of its attempts begins beside fewer, the last alone,
        so that they come to an end."""
        gpu = self._gpu(one.slot)
        self._most[gpu] = min(self._most.get(gpu, self.count), one.others)
        how = "was killed, as for want of memory," if one.process.returncode in KILLED else "ran out of memory"
        where = f"{'s' * (one.others > 1)}{f' on GPU {gpu}' if gpu else ''}"
        self.say(
            f"{one.cell.name}: {how} after {seconds} beside {one.others} other{where}: at most {self._most[gpu]} at a "
            "time there from now on, of which this run is to be one again"
        )

    def _try_again(self, one: Running, seconds: str) -> None:
        """An attempt that is to go on, unless several in turn brought nothing."""
        cell, code = one.cell, one.process.returncode
        self._tries[cell.path] = 0 if cell.newest() != one.newest else self._tries[cell.path] + 1
        lost = "was killed, as for want of memory" if self.launch is begin_here else \
            "was ended by the scheduler, as for its time or memory, or lost its host"
        how = (
            lost if code in KILLED
            else "ended without a summary" if code == 0 else f"was stopped from outside (exit code {code})"
        )
        if self._tries[cell.path] >= MOST_TRIES:
            self._fail(cell, f"{how}, {MOST_TRIES} times without a new checkpoint: {_last_line(one)}", seconds)
        else:
            self.say(f"{cell.name}: {how} after {seconds}; it goes on from its last checkpoint")

    def _fail(self, cell: Cell, reason: str, seconds: str) -> None:
        target = cell.path / FAILED
        with storage_errors("write", target):
            write_file_atomically(Disk(), target, f"{reason}\n".encode())
        self.say(f"{cell.name}: failed after {seconds}, {reason}")

    def _save_all(self) -> None:
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


def _last_line(one: Running) -> str:
    """Of what this attempt printed."""
    lines = _printed(one)
    return lines[-1] if lines else "nothing was printed"


def _drift(one: Running) -> str:
    """What differs from the run's lock, when that ended this attempt; its own advice is an option of muse-run."""
    lines = _printed(one)
    if not lines or lines[-1] != GO_ON:
        return ""
    differing = itertools.takewhile(lambda line: line.startswith("  "), reversed(lines[:-1]))
    found = "; ".join(reversed([line.strip() for line in differing]))
    return f"the run was begun with something else ({found}) - remove {one.cell.path} to begin it anew"


def _printed(one: Running) -> list[str]:
    """Lines of this attempt."""
    log = one.cell.path / "log.txt"
    printed = log.read_bytes()[one.printed :] if log.exists() else b""  # a job that never began has none
    return printed.decode("utf-8", errors="replace").strip().splitlines()
