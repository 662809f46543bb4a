"""Requests to stop: signals and wall clock. A first signal saves and ends, a second ends at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

from muse_core.errors import MuseError


class Interrupted(MuseError):
    """Ended by a signal after the checkpoint was committed; exit code 128 + signal."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + number


class Stop:
    """A context that turns SIGINT and SIGTERM into a flag, and knows the time limit."""

    def __init__(self, max_seconds: float | None, *, already: float = 0.0):
        self.signal: int | None = None
        self.deadline = None if max_seconds is None else time.monotonic() + max_seconds - already
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number

    @property
    def interrupted(self) -> bool:
        """A signal has come."""
        return self.signal is not None

    @property
    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def requested(self) -> bool:
        return self.interrupted or self.out_of_time
