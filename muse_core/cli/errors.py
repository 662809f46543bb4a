"""The one place where a command turns an exception into a message and an exit code."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from muse_core.errors import MuseError

INTERRUPTED = 130


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the body with its exit code, its ``finally`` clauses run; training then takes the signal over."""

    def end(number: int, frame: FrameType | None) -> None:
        print("terminated", file=sys.stderr)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Runs a command's body. A MuseError becomes its message on stderr and its exit code; an interrupt becomes 130.

    Anything else is a fault of the program: its traceback is shown and the exit code is 1.
    """
    try:
        yield
    except MuseError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
