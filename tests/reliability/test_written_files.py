"""Files that are replaced: whole whoever writes them at the same time, and nothing is left of a writer that failed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muse_core.errors import StorageError
from muse_core.selftest.reliability.disks import FailingDisk, VolatileDisk
from muse_core.storage.disk import STALE, Disk, HeldDisk, deliver, leftovers, temporary, write_file_atomically
from muse_core.storage.new_directory import filled

WRITES = """
import sys
from pathlib import Path
from muse_core.selftest.reliability.disks import VolatileDisk
from muse_core.storage.disk import write_file_atomically
for _ in range(100):
    write_file_atomically(VolatileDisk(), Path(sys.argv[1]), sys.argv[2].encode() * 10_000)
"""


def test_processes_that_write_one_file_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write_file_atomically(VolatileDisk(), path, b"a" * 10_000)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITES, str(path), text], stderr=subprocess.PIPE) for text in "abc"
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        content = path.read_bytes()
        assert len(content) == 10_000 and len(set(content)) == 1
        seen.add(content[:1])
    assert [writer.communicate()[1] for writer in writers] == [b"", b"", b""] and len(seen) > 1
    assert [one.name for one in tmp_path.iterdir()] == ["report.md"]


@pytest.mark.parametrize("call", range(6))
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path, call: int) -> None:
    path = tmp_path / "report.md"
    path.write_text("old")
    disk = FailingDisk(call, errno.ENOSPC)
    try:
        write_file_atomically(disk, path, b"new")
    except OSError as error:
        assert error.errno == errno.ENOSPC
    assert disk.failed is not None or call == 5
    assert path.read_text() in ("old", "new") and [one.name for one in tmp_path.iterdir()] == ["report.md"]


def test_what_an_ended_process_left_goes_and_what_another_writes_stays(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path, old = tmp_path / "a[b].json", time.time() - STALE - 1
    names = {"dead and old": ended.pid, "alive and old": os.getppid()}
    files = {name: tmp_path / f".{number}.{path.name}.tmp" for name, number in names.items()}
    files["dead and old"].write_text("")
    assert leftovers(path) == [], "another host's process may be writing it"
    os.utime(files["dead and old"], (old, old))
    files["alive and old"].write_text("")
    os.utime(files["alive and old"], (old, old))
    temporary(path).write_text("of a process that had this number")
    for foreign in (".7x.a[b].json.tmp", ".1.other.json.tmp", f".{2**80}.a[b].json.tmp"):
        (tmp_path / foreign).write_text("")
        os.utime(tmp_path / foreign, (old, old))
    write_file_atomically(VolatileDisk(), path, b"{}")
    left = {one.name for one in tmp_path.iterdir()}
    assert left == {
        path.name, files["alive and old"].name, ".7x.a[b].json.tmp", ".1.other.json.tmp", f".{2**80}.a[b].json.tmp"
    }


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EPERM, "not its owner"), FileNotFoundError(errno.ENOENT, "gone")]
)
def test_what_cannot_be_cleared_disturbs_no_writer(tmp_path: Path, error: OSError) -> None:
    """As what another user's process left in /tmp, or what a second process removes at the same moment."""

    class Refusing(VolatileDisk):
        def remove(self, path: Path) -> None:
            if path.name.startswith(f".{ended.pid}."):
                raise error
            super().remove(path)

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = tmp_path / "report.md"
    left = tmp_path / f".{ended.pid}.{path.name}.tmp"
    left.write_text("")
    os.utime(left, (1.0, 1.0))
    write_file_atomically(Refusing(), path, b"new")
    assert path.read_bytes() == b"new" and left.exists()


@pytest.mark.parametrize("kind", [VolatileDisk, HeldDisk])
def test_a_file_that_cannot_be_made_is_named_by_its_own_name(tmp_path: Path, kind: type[Disk]) -> None:
    """Its folder is not there; the hidden one under which it is made tells a user nothing."""
    disk = kind(tmp_path) if kind is HeldDisk else kind()
    path = tmp_path / "gone" / "report.md"
    with pytest.raises(FileNotFoundError) as raised:
        write_file_atomically(disk, path, b"new")
    assert raised.value.filename == str(path)


def test_an_interrupt_within_a_write_leaves_nothing(tmp_path: Path) -> None:
    class Interrupted(VolatileDisk):
        def rename(self, old: Path, new: Path) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file_atomically(Interrupted(), tmp_path / "report.md", b"new")
    assert not list(tmp_path.iterdir())


def test_two_exports_into_one_directory_keep_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "exported"
    refused = pytest.raises(StorageError, match="exported: cannot write the export")
    with refused, filled(target, "write the export") as slow:
        (slow / "weights").write_text("slow")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", os.getppid)
            with filled(target, "write the export") as quick:
                (quick / "weights").write_text("quick")
    assert (target / "weights").read_text() == "quick" and [one.name for one in tmp_path.iterdir()] == ["exported"]


def test_an_export_that_fails_names_the_file_where_it_was_to_be(tmp_path: Path) -> None:
    target = tmp_path / "exported"
    with pytest.raises(StorageError) as raised, filled(target, "write the export") as partial:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(partial / "deep" / "model.safetensors"))
    assert str(raised.value).startswith(f"{target}/deep/model.safetensors: cannot write the export: File too large - ")
    assert "raise the limit (ulimit -f)" in str(raised.value) and not list(tmp_path.iterdir())


def test_a_text_is_delivered_behind_a_link_and_into_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    deliver(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "real.json").read_text() == "new"
    reading, writing = os.pipe()
    deliver(Path(f"/dev/fd/{writing}"), "through")
    os.close(writing)
    with open(reading) as pipe:
        assert pipe.read() == "through"
