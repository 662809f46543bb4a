"""Sees to it that no process of a run outlives another by more than a minute, and says which one was lost.

Every process has a thread that writes into the store, once a second, that it lives and how far its main thread has
come. Rank 0's thread reads all of them; the others' read rank 0's and the list of failures. Who fails says so there.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs

from muse_core.errors import RankLost

INTERVAL = 1.0
"""Seconds between two signs of life."""
SILENT = 20.0
"""Seconds without one after which a process counts as lost: it was stopped or killed, or its host is gone."""
STALL = 30.0
"""Seconds that a rank may stay at one place of a step while others wait for it, or SLOWER times its longest stay."""
SLOWER = 5.0
LONG = 3600.0
"""The same for work that is known to take long, as setting up, compiling, evaluating and writing checkpoints."""
GRACE = 3.0
"""Seconds in which a process that learns of a failure may end by itself."""
COLLECTIVES = f"{os.sep}torch{os.sep}distributed{os.sep}"
"""In the path of every file of torch's distributed parts."""
LAST_WORDS = 60.0
"""The same for a process that is ending already, as one that draws the report of a halted run."""


@attrs.frozen(kw_only=True)
class Failure:
    """Why the run ends, as the first process said that saw it."""

    rank: int
    sentence: str
    code: int
    """Exit code of every process that ends for it."""


class PeerFailed(RankLost):
    """This process ends because another failed, which has said why."""

    def __init__(self, failure: Failure):
        super().__init__(f"rank {failure.rank}: {failure.sentence}")
        self.exit_code = failure.code


@attrs.define
class _Seen:
    """What is known of another process."""

    beat: int = -1
    alive: float = 0.0
    """When its last sign of life came."""
    marks: int = -1
    moved: float = 0.0
    """When its main thread last came further."""
    about: dict[str, Any] = attrs.field(factory=dict)
    waits: bool = False
    """Its main thread waits for other processes."""
    turned: float = 0.0
    """Since when every sign of life has said so, or the contrary."""


class Watch:
    """The thread of one process. ``connect`` opens a connection to the store of its own."""

    def __init__(self, rank: int, size: int, connect: Callable[[], Any], exit: Callable[[int], Any] = os._exit):
        self.rank, self.size = rank, size
        self.marks = 0
        """How far the main thread has come; equal places have equal numbers on all ranks."""
        self.doing, self.limit = "setting up", LONG
        self.ending = False
        """The main thread is on its way out and needs no help."""
        self.failure: Failure | None = None
        """The first one, once it is known."""
        self._store = connect()
        self._exit = exit
        self._done = threading.Event()
        self._beat = 0
        self._seen = [_Seen(alive=time.monotonic(), moved=time.monotonic()) for _ in range(size)]
        self._say(done=False)  # at once: who is lost within the first interval can be named
        self._thread = threading.Thread(target=self._run, name="muse-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """This process has ended well."""
        self._done.set()
        self._thread.join(timeout=5)

    def silent_rank(self, after: float) -> int | None:
        """A rank other than this one without a sign of life for so many seconds."""
        now = time.monotonic()
        for rank, seen in enumerate(self._seen):
            if rank != self.rank and not seen.about.get("done") and now - seen.alive > after:
                return rank
        return None

    def look(self) -> None:
        """Read what all other processes say; used when it must be found out which of them is gone."""
        self._read(range(self.size))

    def _run(self) -> None:
        while True:
            slept = time.monotonic()
            done = self._done.wait(INTERVAL)
            if time.monotonic() - slept > SILENT / 2:
                self._woken()
            try:
                self._say(done)
                self.failure = self.failure or first_failure(self._store)
                if done:
                    return
                if self.failure is None:
                    self._judge()
            except Exception as error:  # of the store's connection, whose types differ from version to version
                if done or self.ending:
                    return
                self.failure = Failure(
                    rank=0, code=RankLost.exit_code,
                    sentence="the store through which the processes meet is gone: the launcher or rank 0 has ended "
                    f"({type(error).__name__})",
                )
                print(self.failure.sentence, file=sys.stderr, flush=True)
            if self.failure is not None:
                self._leave(self.failure)
                return

    def _woken(self) -> None:
        """This process itself was stopped, as when all of a run are and go on later: nothing is known of how long the
        others have been silent."""
        now = time.monotonic()
        for seen in self._seen:
            seen.alive = seen.moved = seen.turned = now

    def _say(self, done: bool) -> None:
        self._beat += 1
        about = {"beat": self._beat, "marks": self.marks, "doing": self.doing, "limit": self.limit, "done": done,
                 "waits": waits(), "host": socket.gethostname(), "pid": os.getpid()}
        self._store.set(f"beat/{self.rank}", json.dumps(about))

    def _read(self, ranks: Any) -> None:
        now = time.monotonic()
        keys = [f"beat/{rank}" for rank in ranks if self._store.check([f"beat/{rank}"])]
        for key, value in zip(keys, self._store.multi_get(keys) if keys else [], strict=True):
            seen, about = self._seen[int(key.partition("/")[2])], json.loads(value)
            if about["beat"] != seen.beat:
                seen.beat, seen.alive = about["beat"], now
            if about["marks"] != seen.marks:
                seen.marks, seen.moved = about["marks"], now
            if about["waits"] != seen.waits:
                seen.waits, seen.turned = about["waits"], now
            seen.about = about

    def _judge(self) -> None:
        """Rank 0 of all, the others of rank 0: whether one is lost. Says so and makes it known."""
        self._read(range(self.size) if self.rank == 0 else [0])
        found = None
        silent = self.silent_rank(SILENT)
        if silent is not None and (self.rank == 0 or silent == 0):
            found = Failure(rank=silent, code=RankLost.exit_code, sentence=(
                f"{self.name(silent)} has given no sign of life for {SILENT:.0f} s: it was killed or stopped, or its "
                "host is gone"
            ))
        elif self.rank == 0:
            found = self._stalled()
        if found is not None:
            number, self.failure = post(self._store, found), found
            if number == 1:
                print(found.sentence, file=sys.stderr, flush=True)

    def _stalled(self) -> Failure | None:
        at_work = [(seen.marks, rank) for rank, seen in enumerate(self._seen) if not seen.about.get("done")]
        if not at_work:
            return None
        rank, began = min(at_work)[1], -math.inf
        if min(at_work)[0] == max(at_work)[0]:
            # At one place, within which some wait for others, as where layers gather from all processes.
            waiting = [self._seen[one].turned for _, one in at_work if self._seen[one].waits]
            working = [(self._seen[one].turned, one) for _, one in at_work if not self._seen[one].waits]
            if not waiting or not working:
                return None
            turned, rank = min(working)
            began = max(turned, min(waiting))
        seen = self._seen[rank]
        for_seconds = time.monotonic() - max(seen.moved, began)
        if for_seconds <= seen.about.get("limit", LONG):
            return None
        return Failure(rank=rank, code=RankLost.exit_code, sentence=(
            f"{self.name(rank)} stands still for {for_seconds:.0f} s at {seen.about['doing']} while others wait for it"
        ))

    def name(self, rank: int) -> str:
        """A rank with its process and host, where they are known."""
        about = self._seen[rank].about
        return f"rank {rank} (process {about['pid']} on {about['host']})" if about else f"rank {rank}"

    def _leave(self, failure: Failure) -> None:
        """End the process unless its main thread does so in time."""
        since = time.monotonic()
        while time.monotonic() - since < (LAST_WORDS if self.ending else GRACE):
            if self._done.wait(0.1):
                return
        with contextlib.suppress(RuntimeError, OSError):
            self._store.set(f"gone/{self.rank}", "1")
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        self._exit(failure.code)


def waits() -> bool:
    """Whether this process's main thread is in a function of torch's that waits for other processes."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if COLLECTIVES in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def post(store: Any, failure: Failure) -> int:
    """Make a failure known; returns its number, 1 for the first of the run."""
    number = int(store.add("failures", 1))
    text = json.dumps(attrs.asdict(failure))
    store.set(f"failure/{number}", text)
    store.set(f"failed/{failure.rank}", text)
    return number


def first_failure(store: Any) -> Failure | None:
    """The first failure that was made known."""
    if int(store.add("failures", 0)) == 0 or not store.check(["failure/1"]):
        return None
    return Failure(**json.loads(store.get("failure/1")))


def failure_of(store: Any, rank: int) -> Failure | None:
    """What a rank has made known of itself."""
    key = f"failed/{rank}"
    return Failure(**json.loads(store.get(key))) if store.check([key]) else None
