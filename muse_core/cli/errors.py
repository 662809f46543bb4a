"""The one place where a command turns an exception into a message and an exit code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from muse_core.errors import MuseError

INTERRUPTED = 130


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
