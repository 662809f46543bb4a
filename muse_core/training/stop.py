"""Requests to stop: signals and wall clock. The first signal saves and ends; the same one again, later, ends now."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

from muse_core.errors import MuseError
from muse_core.parallel.one import ONE, Ranks

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
"""Ctrl-C, ``kill``, a connection that is lost, and the warning of a queue before its time limit."""
IMPATIENCE = 1.0
"""Seconds after which a repeated signal ends at once. A launcher that signals a process and then its group, or sends
SIGINT and then SIGTERM, asks once."""


class Interrupted(MuseError):
    """Ended by a signal after the checkpoint was committed; exit code 128 + signal."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + number


class Heard:
    """A handler that raises by ``answer`` and remembers the first signal: what it raises can be lost, since torch drops
    every error of an import that its C++ makes, and the command would go on with half of a library."""

    def __init__(self, answer: Callable[[int], None]):
        self.received: int | None = None
        self.answer = answer

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        self.answer(number)


class Stop:
    """A context that turns SIGINT, SIGTERM, SIGHUP and SIGUSR1 into a flag, and knows the time limit. A SIGHUP that is
    ignored, as under nohup, stays ignored."""

    def __init__(self, max_seconds: float | None, ranks: Ranks = ONE):
        """With several ``ranks`` the requests of one are those of all from the next ``agree`` on."""
        self.ranks = ranks
        self.received: int | None = None
        """The signal that this process has had."""
        self._agreed: int | None = None
        self._late = False
        self.deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._since = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in heeded():
                self._previous[number] = before = signal.signal(number, self._receive)
                if isinstance(before, Heard) and before.received is not None:  # and did not end the command
                    self.received, self._since = before.received, time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif number == self.received and time.monotonic() - self._since >= IMPATIENCE:
            os._exit(128 + number)

    @property
    def signal(self) -> int | None:
        """The signal that ends the run."""
        return self.received if self.ranks.size == 1 else self._agreed

    @property
    def interrupted(self) -> bool:
        """A signal has come."""
        return self.signal is not None

    @property
    def out_of_time(self) -> bool:
        return self._late if self.ranks.size > 1 else self._is_late()

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def flags(self) -> list[int]:
        """What this process knows: the number of its signal or 0, and whether its time is over."""
        return [self.received or 0, int(self._is_late())]

    def settle(self, flags: Sequence[Sequence[int]]) -> None:
        """Take as agreed what all ranks know."""
        numbers = [number for number, _ in flags if number]
        self._agreed = numbers[0] if numbers else self._agreed
        self._late = self._late or any(late for _, late in flags)

    def agree(self) -> None:
        """A collective: from here on a request of one rank is one of all."""
        if self.ranks.size > 1:
            self.settle(self.ranks.gather(self.flags()))

    @property
    def requested(self) -> bool:
        return self.interrupted or self.out_of_time


def heeded() -> list[int]:
    """The signals that end a command, without a SIGHUP that the command was started to ignore."""
    return [one for one in SIGNALS if one.name != "SIGHUP" or signal.getsignal(one) is not signal.SIG_IGN]
