"""C8 and S4: one process per run directory, one run per directory, and nothing written outside it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from muse_core.errors import StorageError
from muse_core.fault_injection import installed
from muse_core.metrics.jsonl import Records
from muse_core.selftest.reliability.crash_states import snapshot
from muse_core.selftest.reliability.disks import FailingDisk, VolatileDisk
from muse_core.storage import directory_lock
from muse_core.storage.checkpoint import Checkpoints
from muse_core.storage.run_directory import RunDirectory

HOLD = """
import os, sys, time
from muse_core.storage.run_directory import RunDirectory
run = RunDirectory.open(sys.argv[1])
if sys.argv[2] == "fork":
    started, say = os.pipe()
    if os.fork() == 0:
        os.write(say, b".")
        time.sleep(600)
    os.read(started, 1)
print(os.getpid(), flush=True)
time.sleep(600)
"""


def create(path, recipe='name = "a"\n', **options):
    return RunDirectory.create(path, source="# as given\n", recipe=recipe, lock="", **options)


@pytest.fixture
def run(tmp_path):
    with create(tmp_path / "run") as made:
        pass
    return made.path


def holder(run, how="plain"):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run), how], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == str(process.pid)
    return process


@pytest.mark.promise("C8")
def test_a_second_process_is_refused_with_the_holders_pid_and_host_and_a_killed_one_does_not_block(run):
    process = holder(run)
    try:
        for claim in (RunDirectory.open, create):
            with pytest.raises(StorageError) as refused:
                claim(run)
            assert refused.value.exit_code == 3
            assert f"in use by process {process.pid} on {socket.gethostname()}" in str(refused.value)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with RunDirectory.open(run):
        pass


@pytest.mark.promise("C8")
def test_a_child_that_outlives_a_killed_holder_does_not_block(run):
    process = holder(run, "fork")
    children = open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()
    try:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with RunDirectory.open(run):
            pass
    finally:
        for child in children:
            os.kill(int(child), signal.SIGKILL)


@pytest.mark.promise("C8")
def test_a_holder_that_has_not_said_its_name_is_waited_for_less_than_a_second(run):
    assert directory_lock.PATIENCE_SECONDS < 1
    with RunDirectory.open(run):
        (run / "run.lock.holder").unlink()
        with pytest.raises(StorageError, match="a process that has not said its name"):
            RunDirectory.open(run)


@pytest.mark.promise("C8")
def test_one_who_asks_whether_a_run_is_in_use_keeps_nobody_from_it(run, monkeypatch):
    assert directory_lock.ASKED_SECONDS > 0
    monkeypatch.setattr(directory_lock, "ASKED_SECONDS", 60.0)  # the timer below may come late
    asking = os.open(run / "run.lock", os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    assert not directory_lock.in_use(run)
    timer = threading.Timer(0.05, os.close, [asking])
    timer.start()
    with RunDirectory.open(run):
        assert directory_lock.in_use(run)
    timer.join()
    assert not directory_lock.in_use(run)


@pytest.mark.promise("C8")
def test_a_reader_who_may_not_write_sees_that_nobody_holds_a_run(run, monkeypatch):
    (run / "run.lock").chmod(0o444)
    monkeypatch.chdir(run)  # pytest's folders above it are root's alone
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        free = not directory_lock.in_use(Path())
    finally:
        os.seteuid(user)
    assert free


@pytest.mark.promise("C8")
def test_it_is_free_again_after_the_run(run):
    for _ in range(2):
        with RunDirectory.open(run):
            pass


@pytest.mark.promise("C8")
def test_a_new_run_writes_its_recipe_and_finds_its_files(tmp_path):
    with create(tmp_path / "not" / "there" / "yet") as run:
        assert run.source.read_text() == "# as given\n"
        assert run.recipe.read_text() == 'name = "a"\n'
        assert run.lock.read_text() == ""
        run.write("stages/1-train/recipe.toml", "x = 1\n")
        assert (run.path / "stages" / "1-train" / "recipe.toml").read_text() == "x = 1\n"
        run.write("summary.json", "{}")
        assert run.summary.read_text() == "{}"
        assert not list(run.path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [('name = "a"\n', "already holds a run of this recipe"), ('name = "b"\n', "holds a run of another recipe")],
)
@pytest.mark.promise("C8")
def test_a_directory_holds_one_run(run, recipe, sentence):
    with pytest.raises(StorageError, match=f"{sentence}.*--resume"):
        create(run, recipe)
    with RunDirectory.open(run) as again:
        assert again.recipe.read_text() == 'name = "a"\n'


@pytest.mark.promise("C8")
def test_a_run_that_lost_its_recipe_is_not_overwritten(run):
    Checkpoints(run, disk=VolatileDisk()).commit(snapshot(1))
    (run / "recipe.toml").unlink()
    with pytest.raises(StorageError, match=r"recipe\.toml is missing"):
        create(run)


@pytest.mark.promise("C8")
def test_other_files_in_the_directory_do_not_matter(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with create(tmp_path):
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.promise("C8")
def test_a_crash_while_a_directory_is_made_leaves_nothing_in_the_way(tmp_path):
    disk = FailingDisk()
    create(tmp_path / "good", disk=disk).close()
    for index, _ in enumerate(disk.names):
        path = tmp_path / f"run-{index}"
        with pytest.raises(StorageError):
            create(path, disk=FailingDisk(fail_at=index)).close()
        if (path / "recipe.toml").exists():
            RunDirectory.open(path).close()
        else:
            create(path, disk=VolatileDisk()).close()


@pytest.mark.promise("C8")
def test_what_stands_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StorageError, match="in the way") as raised:
            create(path)
        assert str(tmp_path / "file") in str(raised.value)


@pytest.mark.promise("C8")
def test_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(StorageError, match="there is no such run directory"):
        RunDirectory.open(tmp_path / "missing")
    with pytest.raises(StorageError, match=r"holds no run \(it has no recipe\.toml\)"):
        RunDirectory.open(tmp_path)
    with pytest.raises(StorageError, match="holds no run"):
        RunDirectory.open(tmp_path)


@pytest.mark.parametrize("call", ["mkdir", "open"])
@pytest.mark.promise("C8")
def test_a_directory_that_may_not_be_written_is_named(tmp_path, call):
    class Forbidden(VolatileDisk):
        def mkdir(self, path):
            if call == "mkdir":
                raise PermissionError(13, "Permission denied", str(path))
            super().mkdir(path)

        def open(self, path, flags):
            if call == "open" and flags & os.O_CREAT:
                raise PermissionError(13, "Permission denied", str(path))
            return super().open(path, flags)

    with pytest.raises(StorageError, match=f"{tmp_path}/run.*Permission denied.*choose another directory"):
        create(tmp_path / "run", disk=Forbidden())


@pytest.mark.promise("S4")
def test_nothing_is_written_outside_the_run_directory(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (run / "checkpoints").symlink_to(outside)
    (run / "stages").symlink_to(outside)
    (run / "metrics.jsonl").symlink_to(outside / "metrics.jsonl")
    with RunDirectory.open(run) as opened:
        for name in ("../stolen", "stages/stolen", str(tmp_path / "stolen")):
            with pytest.raises(StorageError, match="outside the run directory"):
                opened.write(name, "x")
    with pytest.raises(StorageError, match="outside the run directory"):
        Checkpoints(run)
    with pytest.raises(StorageError, match="outside the run directory"):
        Records(run)
    assert list(outside.iterdir()) == []


@pytest.mark.promise("S4")
@pytest.mark.parametrize("when", ["begin", "after_files", "after_manifest", "after_rename"])
def test_a_folder_that_is_exchanged_for_a_link_during_a_commit_leads_nowhere(run, tmp_path, when):
    """A24: between the look and the writing there is no moment at which the link would be followed."""
    outside = tmp_path / "outside"
    with RunDirectory.open(run) as opened:
        checkpoints = Checkpoints(run, disk=opened.disk)
        checkpoints.commit(snapshot(1))

        def exchange(value):
            (run / "checkpoints").rename(tmp_path / "before")
            shutil.copytree(tmp_path / "before", outside)  # so that every name that is written to is there
            (run / "checkpoints").symlink_to(outside)
            there.update(contents(outside))
            return value

        there: dict[str, bytes] = {}
        with installed({f"commit.{when}": exchange}), pytest.raises(StorageError, match=f"{run}/checkpoints"):
            checkpoints.commit(snapshot(2))
    assert contents(outside) == there, "nothing was written, renamed or removed behind the link"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.promise("S4")
def test_a_link_to_a_run_directory_is_that_directory(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    with RunDirectory.open(tmp_path / "link") as opened:
        assert opened.path == run
        with pytest.raises(StorageError, match="in use"):
            RunDirectory.open(run)
