"""C3: a disk that is full or defective at any call of a commit leaves the previous generation as it was."""

from __future__ import annotations

import errno

import pytest

from muse_core.errors import StorageError
from muse_core.selftest.reliability.crash_states import snapshot
from muse_core.selftest.reliability.disks import FailingDisk, VolatileDisk
from muse_core.storage.checkpoint import Checkpoints
from muse_core.storage.checkpoint.commit import bytes_needed

pytestmark = pytest.mark.promise("C3")


def third_commit(run, **failure):
    """Two generations on a good disk, then a commit with retention on a failing one."""
    good = Checkpoints(run, keep=1, disk=VolatileDisk())
    good.commit(snapshot(1))
    good.commit(snapshot(2), certified=True)
    disk = FailingDisk(**failure)
    failing = Checkpoints(run, keep=1, disk=disk)
    failing.newest()
    return failing, disk


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Every call of a commit that goes well."""
    checkpoints, disk = third_commit(tmp_path_factory.mktemp("good"))
    checkpoints.commit(snapshot(3), certified=True)
    checkpoints.commit(snapshot(4), certified=True)
    return [name.split()[0] for name in disk.names]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("short", [False, True], ids=["at once", "after half a write"])
def test_every_call_may_fail(tmp_path, calls, error, short):
    assert {"open", "write", "fsync", "close", "mkdir", "rename", "remove", "rmdir", "free_space"} <= set(calls)
    for index, kind in enumerate(calls):
        if short and kind != "write":
            continue
        checkpoints, disk = third_commit(tmp_path / f"run-{index}", fail_at=index, error=error, short=short)
        acknowledged = 2
        with pytest.raises(StorageError) as raised:
            for step in (3, 4):
                checkpoints.commit(snapshot(step), certified=True)
                acknowledged = step
        assert raised.value.exit_code == 3
        assert f"needs {bytes_needed(snapshot(acknowledged + 1)):,} bytes" in str(raised.value)
        assert disk.failed is not None
        assert disk.repeated_syncs == []

        made = len(disk.names)
        with pytest.raises(StorageError, match="restart the run"):
            checkpoints.commit(snapshot(5))
        assert len(disk.names) == made, "a failed disk is written to again"

        run = tmp_path / f"run-{index}"
        generation, found = Checkpoints(run).newest()
        # A failure after the commit point leaves the new generation complete, though it was not acknowledged.
        assert generation.step in (acknowledged, acknowledged + 1)
        assert found.state_hash() == snapshot(generation.step).state_hash()
        restarted = Checkpoints(run, keep=1, disk=VolatileDisk())
        restarted.newest()
        assert restarted.commit(snapshot(9)).number > generation.number
        assert not list((run / "checkpoints").glob(".*")), "leftovers stay"


def test_short_writes_alone_do_no_harm(tmp_path):
    class Reluctant(VolatileDisk):
        def write(self, handle, data):
            return super().write(handle, data[:7])

    Checkpoints(tmp_path, disk=Reluctant()).commit(snapshot(1))
    assert Checkpoints(tmp_path).newest()[1].state_hash() == snapshot(1).state_hash()


def test_a_disk_that_takes_nothing_is_an_error_not_an_endless_loop(tmp_path):
    class Stubborn(VolatileDisk):
        def write(self, handle, data):
            return 0

    with pytest.raises(StorageError, match="Input/output error"):
        Checkpoints(tmp_path, disk=Stubborn()).commit(snapshot(1))
