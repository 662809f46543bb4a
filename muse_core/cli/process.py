"""What a command does first about the process that it runs in: its standard streams and its launcher."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import sys

from muse_core.errors import RecipeError


class _Unfailing(io.RawIOBase):
    """Writes to a file descriptor; what it does not take, as when its reader is gone or its disk full, is dropped.

    A text stream stands on it without a buffered writer between: that has a lock, and a thread of a plugin that prints
    while the interpreter shuts down would leave it locked, which aborts the process after the run has ended.
    """

    def __init__(self, handle: int):
        self._handle = handle

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._handle

    def isatty(self) -> bool:
        return os.isatty(self._handle)

    def write(self, data: bytes | memoryview) -> int:
        left = whole = memoryview(data).cast("B")
        while left:
            try:
                left = left[os.write(self._handle, left) :]
            except OSError:
                break
        return len(whole)


class _Stream(io.TextIOWrapper):
    """A standard stream that no plugin can close. Who tries is named on standard error, once."""

    told = False

    def close(self) -> None:
        if self.closed:
            return
        self.flush()
        frame = sys._getframe(1)
        if not _Stream.told and not sys.is_finalizing():
            _Stream.told = True
            place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            print(f"{place} closes a standard stream of this process; it stays open", file=sys.stderr, flush=True)


def outlive_output() -> None:
    """From here on no write to standard output or standard error fails: a closed pipe or a full disk ends the display
    and not the run, whose records hold every number. Streams that something else has put in place are left alone."""
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # Or else the next file that is opened, a record of the run, would receive what is printed.
            os.dup2(os.open(os.devnull, os.O_RDWR), handle)
    for handle, name in ((1, "stdout"), (2, "stderr")):
        now = getattr(sys, name)
        if now is not None and now is not getattr(sys, f"__{name}__"):
            continue
        encoding = getattr(now, "encoding", None) or "utf-8"
        # A number of its own, above those of standard streams: code that closes 1 or 2 takes nothing away.
        raw = _Unfailing(fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 3))
        errors = "backslashreplace" if name == "stderr" else "replace"
        stream = _Stream(raw, encoding=encoding, errors=errors, line_buffering=True)
        setattr(sys, name, stream)


def refuse_several_processes(what: str = "this command") -> None:
    """Raises RecipeError under a launcher of several processes, such as torchrun, for what is done by one process."""
    size = os.environ.get("WORLD_SIZE", "").strip()
    if size not in ("", "1"):
        raise RecipeError(
            f"WORLD_SIZE = {size}: {what} is one process - start it without torchrun or another launcher, or "
            "unset WORLD_SIZE; muse-run is what several processes share"
        )
