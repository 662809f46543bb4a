"""The one module through which checkpoints, records and everything else durable are written.

``Disk`` holds the system calls, so that a test can record them or make them fail; the functions are what the rest of
the training code uses. All raise OSError; ``storage_errors`` turns that into a sentence. Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from muse_core.errors import StorageError

ADVICE = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "your disk quota is used up: free some space",
    errno.EFBIG: "files may not become so large here: raise the limit (ulimit -f), or choose another file system",
    errno.EROFS: "the file system is read-only: choose another directory",
    errno.EACCES: "this user is not permitted to: change the permissions there or choose another directory",
    errno.EPERM: "this user is not permitted to: change the permissions there or choose another directory",
    errno.EEXIST: "something of that name is in the way: move it aside or choose another directory",
    errno.ENOTDIR: "a file is in the way where a directory should be: move it aside or choose another directory",
    errno.EISDIR: "a directory is in the way where a file should be: move it aside or choose another directory",
    errno.ELOOP: "a symbolic link is in the way: a run writes only to real files inside its own directory",
    errno.EIO: "the disk reports a defect: check it, or choose a directory on another one",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "this process has too many files open: raise the limit (ulimit -n)",
    errno.ENFILE: "this machine has too many files open: close some programs",
}

STALE = 3600.0
"""Seconds after which what a process has left under a temporary name is removed."""


class Disk:
    """Everything that changes a file system. Opening never follows a symbolic link in the last part of the path."""

    def open(self, path: Path, flags: int) -> int:
        return above_streams(os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666))

    def write(self, handle: int, data: memoryview) -> int:
        """Returns how many bytes were written, which may be fewer than given."""
        return os.write(handle, data)

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def mkdir(self, path: Path) -> None:
        os.mkdir(path)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)

    def free_space(self, path: Path) -> int:
        """Bytes that this user may still write below ``path``."""
        return shutil.disk_usage(path).free


def above_streams(handle: int) -> int:
    """The handle, moved when it has the number of a standard stream, which some code has closed: what is printed later
    would be written into the file."""
    while handle <= 2:
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        moved = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 3)
        os.dup2(nowhere, handle)
        if nowhere > 2:
            os.close(nowhere)
        handle = moved
    return handle


class HeldDisk(Disk):
    """A disk for what lies below one directory, which is held open: its paths are followed part by part from there, and
    no part may be a symbolic link (OSError). A folder that is exchanged for a link, at whatever moment, leads nowhere
    else. Other paths are as usual."""

    def __init__(self, root: Path):
        self.root = root
        self._handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def let_go(self) -> None:
        """Closes the directory; nothing below it can be changed any more."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1

    def open(self, path: Path, flags: int) -> int:
        with self._at(path) as (name, folder):
            return above_streams(os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666, dir_fd=folder))

    def mkdir(self, path: Path) -> None:
        with self._at(path) as (name, folder):
            os.mkdir(name, dir_fd=folder)

    def rename(self, old: Path, new: Path) -> None:
        with self._at(old) as (name, folder), self._at(new) as (other, into):
            os.rename(name, other, src_dir_fd=folder, dst_dir_fd=into)

    def remove(self, path: Path) -> None:
        with self._at(path) as (name, folder):
            os.unlink(name, dir_fd=folder)

    def rmdir(self, path: Path) -> None:
        with self._at(path) as (name, folder):
            os.rmdir(name, dir_fd=folder)

    @contextlib.contextmanager
    def _at(self, path: Path) -> Iterator[tuple[str | Path, int | None]]:
        """The last part of a path and the handle of the folder that it is in; the path and None for one that is not
        below the directory."""
        if not path.is_relative_to(self.root) or path == self.root:
            yield path, None
            return
        *folders, name = path.relative_to(self.root).parts
        handle = os.dup(self._handle)
        try:
            for folder in folders:
                into = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=handle)
                os.close(handle)
                handle = into
            yield name, handle
        except OSError as error:
            error.filename, error.filename2 = str(path), None  # it names the last part alone
            raise
        finally:
            os.close(handle)


class Written(NamedTuple):
    """What was written to a file."""

    size: int
    sha256: str


def write_all(disk: Disk, handle: int, data: memoryview | bytes) -> None:
    """Writes all of ``data`` however little the disk takes at a time."""
    rest = memoryview(data).cast("B")
    while len(rest):
        count = disk.write(handle, rest)
        if count <= 0:
            raise OSError(errno.EIO, "the disk accepts no bytes")
        rest = rest[count:]


def write_new_file(disk: Disk, path: Path, chunks: Iterable[memoryview | bytes]) -> Written:
    """Creates a file, writes the chunks and makes its content durable (its name is durable once the folder is)."""
    digest = hashlib.sha256()
    size = 0
    handle = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        for chunk in chunks:
            write_all(disk, handle, chunk)
            digest.update(chunk)
            size += memoryview(chunk).nbytes
        disk.fsync(handle)
    finally:
        disk.close(handle)
    return Written(size, digest.hexdigest())


def write_file_atomically(disk: Disk, path: Path, data: bytes) -> Written:
    """Replaces a file: after a crash either the old or the new content is there, whole; durable on return. Several
    processes may do so at once: the last one's content stays."""
    beside = temporary(path)
    clear_leftovers(disk, path)
    try:
        written = write_new_file(disk, beside, [data])
        disk.rename(beside, path)
    except BaseException as error:  # also where Ctrl-C comes in between
        with contextlib.suppress(OSError):
            disk.remove(beside)
        if isinstance(error, OSError) and error.filename == str(beside):
            error.filename = str(path)  # what a user knows
        raise
    sync_directory(disk, path.parent)
    return written


def temporary(path: Path) -> Path:
    """Where this process writes what is to take the place of ``path``, a file or a directory: beside it, hidden, and
    under a name that no other process of this host takes."""
    return path.with_name(f".{os.getpid()}.{path.name}.tmp")


def leftovers(path: Path) -> list[Path]:
    """What ``temporary(path)`` named in processes that were ended before they were done: in one of this process's
    number, or in one that is no more and has left it for ``STALE`` seconds - it may run on another host."""
    found = []
    for left in path.parent.glob(f".[0-9]*.{glob.escape(path.name)}.tmp"):
        number = left.name[1:].partition(".")[0]
        with contextlib.suppress(FileNotFoundError):  # another process may remove it at the same moment
            if left == temporary(path) or (_ended(number) and time.time() - left.lstat().st_mtime > STALE):
                found.append(left)
    return found


def clear_leftovers(disk: Disk, path: Path) -> None:
    """Removes ``leftovers(path)``. What stays, as another user's in a folder of all or what another process removes at
    the same moment, disturbs nothing, unless it is under this process's own name. Raises OSError for that."""
    for left in leftovers(path):
        try:
            remove_tree(disk, left)
        except OSError:
            if left == temporary(path):
                raise


def _ended(number: str) -> bool:
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OverflowError, PermissionError):  # no number of a process, or one of another user
        return False
    return False


def deliver(path: Path, text: str) -> None:
    """Writes a text where a user asks for it: a file whole or not at all, also behind a symbolic link; into a pipe or a
    device as it is."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
    else:
        write_file_atomically(Disk(), Path(os.path.realpath(path)), text.encode())


def sync_directory(disk: Disk, path: Path) -> None:
    """Makes the names in a directory durable."""
    handle = disk.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk.fsync(handle)
    finally:
        disk.close(handle)


def make_directory(disk: Disk, path: Path) -> None:
    """Makes a directory and its missing parents, durably; an existing one is left as it is, also one that another
    process makes at the same moment."""
    if path.is_dir():
        return
    make_directory(disk, path.parent)
    try:
        disk.mkdir(path)
    except FileNotFoundError:  # another process removed the parent, which it had made for a start that failed
        make_directory(disk, path.parent)
        disk.mkdir(path)
    except FileExistsError:
        if not path.is_dir():
            raise
    sync_directory(disk, path.parent)


def remove_tree(disk: Disk, path: Path) -> None:
    """Removes a file or a directory with all it holds; symbolic links are removed, never followed."""
    if path.is_symlink() or not path.is_dir():
        disk.remove(path)
        return
    for name in sorted(os.listdir(path)):
        remove_tree(disk, path / name)
    disk.rmdir(path)


def read_file(path: Path, *, limit: int | None = None) -> bytes:
    """Content of a regular file of at most ``limit`` bytes; links, pipes and devices are refused (OSError)."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if limit is not None and about.st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def inside(root: Path, path: Path) -> Path:
    """``path`` if it lies under ``root`` once symbolic links are resolved; StorageError otherwise."""
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(root)):
        raise StorageError(
            f"{path}: leads to {real}, outside the run directory {root} - a run writes only inside its own directory; "
            "replace the symbolic link by a real directory"
        )
    return path


@contextlib.contextmanager
def storage_errors(doing: str, path: Path, note: str = "") -> Iterator[None]:
    """Turns an OSError into a StorageError that says what failed, where and what to do."""
    try:
        yield
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else str(error)
        where = error.filename or path
        advice = ADVICE.get(error.errno or 0, "check the disk and the path")
        raise StorageError(f"{where}: cannot {doing}: {what}{note} - {advice}") from error


def refusal(error: BaseException) -> str | None:
    """What the system refused, in a sentence, where nothing nearer to the file has said it: no room, no permission,
    something in the way. Without the name of a file it was standard output or another stream. None for other errors."""
    if not isinstance(error, OSError) or error.errno not in ADVICE:
        return None
    where = error.filename if isinstance(error.filename, str) else "the output"
    return f"{where}: {os.strerror(error.errno)} - {ADVICE[error.errno]}"
