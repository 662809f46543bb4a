"""The one place where a command turns an exception into a message and an exit code."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator

from muse_core.errors import MuseError, PluginError, StorageError, causes
from muse_core.out_of_memory import told
from muse_core.parallel.meeting import spoken_by, told_to_others
from muse_core.storage.disk import refusal
from muse_core.training.stop import Heard, Interrupted, heeded

INTERRUPTED = 130
MEMORY = "the memory ran out ({}) - make room there, or ask for something smaller"
INTERRUPT = re.compile(r"^(\w+: )*KeyboardInterrupt: ", re.MULTILINE)
"""As pybind11 writes one of its own into an error of torch, alone or at the end of TorchScript's traceback."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM, SIGHUP and SIGUSR1 end the body with 128 + their number, its ``finally`` clauses run; training then
    takes the signals over. After the body they end in the same way until the interpreter shuts down, which they do not
    disturb: a command never ends by the default action of a signal. Ctrl-C stays a KeyboardInterrupt.

    What the body raises after a signal that did not end it (`Heard`) follows from that and ends as the signal does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    said: list[int] = []

    def end(number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        speaks, code = told_to_others("terminated", 128 + number, None)
        if speaks and not said:
            said.append(number)
            _say("terminated")
        raise SystemExit(code)

    heard = Heard(end)
    plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    numbers = [one for one in heeded() if one != signal.SIGINT or plain]
    before = {one: signal.signal(one, heard) for one in numbers}
    atexit.register(_ignore, [one for one in numbers if one != signal.SIGINT])
    try:
        yield
        if heard.received is not None:
            end(heard.received)
    except Interrupted:
        raise
    except Exception:
        if heard.received is None:
            raise
        end(heard.received)
    finally:
        for one, handler in before.items():
            if handler not in (signal.SIG_DFL, None):
                signal.signal(one, handler)


def _ignore(numbers: list[int]) -> None:
    for one in numbers:
        signal.signal(one, signal.SIG_IGN)


def warn(sentence: str) -> None:
    """Says something beside what the command answers."""
    print(sentence, file=sys.stderr, flush=True)


def _replace_what_cannot_be_written() -> None:
    """Characters that the terminal's encoding lacks are written as question marks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Runs a command's body. A MuseError becomes its message on stderr and its exit code; an interrupt becomes 130.

    Memory that ran out, whatever needed it, becomes a sentence with exit code 7. What a plugin raised, ``sys.exit``
    too, becomes one that names it with exit code 5, and what the system refuses (a full disk behind a file or standard
    output, a missing permission) one with exit code 3; under ``MUSE_STRICT=1`` the traceback of these two is shown
    before. Anything else is a fault of the program: its traceback is shown and the exit code is 1.
    """
    _replace_what_cannot_be_written()
    try:
        with _interrupts(), told(MEMORY.format):
            yield
    except MuseError as error:
        speaks, code = told_to_others(str(error), error.exit_code, error)
        if speaks and str(error):
            _say(spoken_by() + str(error))
        raise SystemExit(code) from None
    except KeyboardInterrupt:
        speaks, code = told_to_others("interrupted", INTERRUPTED, None)
        if speaks:
            _say("interrupted")
        raise SystemExit(code) from None
    except (Exception, SystemExit) as error:
        from muse_core.plugins.raised import failure

        sentence, code = failure(error), PluginError.exit_code
        if sentence is None:
            sentence, code = refusal(error), StorageError.exit_code
        if sentence is None:
            if not isinstance(error, SystemExit):
                speaks, code = told_to_others(f"{type(error).__name__}: {error}", 1, error)
                if not speaks:
                    raise SystemExit(code) from None
            raise
        if os.environ.get("MUSE_STRICT", "") not in ("", "0"):
            _say("".join(traceback.format_exception(error)).rstrip())
        speaks, code = told_to_others(sentence, code, error)
        if speaks:
            _say(spoken_by() + sentence)
        drop_what_cannot_be_written()
        raise SystemExit(code) from None


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Raises KeyboardInterrupt for one that came while C++ called Python, as torch does in recorded steps: it arrives
    as a RuntimeError that names it."""
    try:
        yield
    except Exception as error:
        if any(isinstance(one, RuntimeError) and INTERRUPT.search(str(one)) for one in causes(error)):
            raise KeyboardInterrupt from None
        raise


def drop_what_cannot_be_written() -> None:
    """Text that standard output did not take, or Python would try it again at the end, complain and exit with 120."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def _say(text: str) -> None:
    """A line on standard error, if there is one that takes it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr)
