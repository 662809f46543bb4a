"""C7 and rollback: which generations stay, which may be resumed from, and what must fit on the disk."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muse_core.errors import StorageError
from muse_core.selftest.reliability.crash_states import snapshot
from muse_core.selftest.reliability.disks import FailingDisk, VolatileDisk
from muse_core.storage.checkpoint import Checkpoints, Generation
from muse_core.storage.checkpoint import checkpoints as checkpoints_module
from muse_core.storage.checkpoint.commit import bytes_needed
from muse_core.storage.checkpoint.retention import kept
from muse_core.training.train_state import dealt

pytestmark = pytest.mark.promise("C7")


def run_with(path, steps, certified=(), keep=5):
    checkpoints = Checkpoints(path, keep=keep, disk=VolatileDisk())
    for step in steps:
        checkpoints.commit(snapshot(step), certified=step in certified)
    return checkpoints


def numbers(checkpoints):
    return [one.number for one in checkpoints.generations()]


def test_five_generations_stay_and_the_two_newest_certified(tmp_path):
    checkpoints = run_with(tmp_path, range(1, 21), certified={2, 4, 6, 18})
    assert numbers(checkpoints) == [20, 19, 18, 17, 16, 6]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12), st.integers(1, 5))
def test_retention_keeps_the_newest_and_the_newest_certified_and_nothing_else(marks, keep):
    def generation(number, certified, abandoned):
        fields = {field.name: None for field in attrs.fields(Generation)}
        return Generation(**{**fields, "number": number, "certified": certified, "abandoned": abandoned})

    every = [generation(number, *mark) for number, mark in enumerate(marks)]
    alive = [one for one in every if not one.abandoned]
    stay = kept(every, keep)
    assert {one.number for one in alive[-keep:]} <= stay
    assert {one.number for one in [one for one in alive if one.certified][-2:]} <= stay
    assert len(stay) <= keep + 2
    assert stay <= {one.number for one in alive}


def test_numbers_grow_while_steps_repeat_and_the_parent_is_where_the_state_came_from(tmp_path):
    checkpoints = run_with(tmp_path, (10, 20, 30), certified={10})
    generation, found = checkpoints.certified_before(25)
    assert (generation.number, found.step) == (1, 10)
    again = checkpoints.commit(snapshot(20))
    assert (again.number, again.parent, again.step) == (4, 1, 20)


def test_a_number_is_not_given_twice_where_somebody_has_removed_the_newest(tmp_path):
    checkpoints = run_with(tmp_path, (10, 20, 30))
    for one in checkpoints.generations():
        shutil.rmtree(one.path)
    again = checkpoints.commit(snapshot(40))
    assert (again.number, again.parent) == (4, 3), "its parent would be itself or come after it"


def test_the_target_of_a_rollback(tmp_path):
    checkpoints = run_with(tmp_path, (10, 20, 30, 40), certified={10, 20, 40})

    def target(step, **options):
        found = checkpoints.certified_before(step, **options)
        return found and found[0].step

    assert target(100) == 40
    assert target(40) == 40
    assert target(39) == 20
    assert target(27, margin=8) == 10
    assert target(100, skip=2) == 10
    assert target(100, skip=3) is None
    assert target(9) is None


def test_certified_later(tmp_path):
    checkpoints = run_with(tmp_path, (10, 20))
    assert checkpoints.certified_before(100) is None
    older = checkpoints.generations()[1]
    assert checkpoints.certify(older).certified
    assert Checkpoints(tmp_path).certified_before(100)[0].step == 10


def test_an_abandoned_branch_is_never_loaded_and_goes_with_the_next_commit(tmp_path):
    checkpoints = run_with(tmp_path, (10, 20, 30, 40), certified={20, 40})
    assert checkpoints.abandon(after=2, through=4) == [4, 3]
    assert checkpoints.abandon(after=2, through=4) == [4, 3]
    resumed = Checkpoints(tmp_path, disk=VolatileDisk())
    assert resumed.newest()[0].number == 2
    assert resumed.certified_before(100)[0].number == 2
    with pytest.raises(StorageError, match="generation 4"):
        resumed.load(4)
    assert resumed.commit(snapshot(30)).number == 5
    assert numbers(resumed) == [5, 2, 1]


def test_when_only_an_abandoned_branch_is_left_nothing_starts_afresh(tmp_path):
    checkpoints = run_with(tmp_path, (10, 20))
    checkpoints.abandon(after=0, through=2)
    with pytest.raises(StorageError, match="no checkpoint can be used"):
        Checkpoints(tmp_path).newest()


def test_digests_come_back(tmp_path):
    digests = {"recipe": "ab", "plugins": {"muse-core": "cd"}}
    Checkpoints(tmp_path, disk=VolatileDisk()).commit(snapshot(1), digests=digests)
    assert Checkpoints(tmp_path).newest()[0].digests == digests


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    class Full(FailingDisk):
        def free_space(self, path):
            return 1000

    checkpoints = run_with(tmp_path, (1, 2))
    disk = Full()
    needed = bytes_needed(snapshot(3))
    with pytest.raises(StorageError, match=f"needs {needed:,} bytes and 1,000 are free - free {needed - 1000:,} more"):
        Checkpoints(tmp_path, disk=disk).commit(snapshot(3))
    with pytest.raises(StorageError, match=f"needs {needed:,} bytes"):
        Checkpoints(tmp_path, disk=disk).check_space(snapshot(3))
    assert not [name for name in disk.names if name.startswith(("write", "mkdir", "rename"))]
    assert numbers(checkpoints) == [2, 1]


def test_the_quota_holds_for_all_generations_and_is_checked_before_the_first(tmp_path):
    needed = bytes_needed(snapshot(1))
    assert Checkpoints(tmp_path, keep=2, quota=5 * needed, disk=VolatileDisk()).check_space(snapshot(1)) == needed
    with pytest.raises(StorageError, match=f"need up to {5 * needed} bytes"):
        Checkpoints(tmp_path, keep=2, quota=5 * needed - 1).commit(snapshot(1))
    checkpoints = Checkpoints(tmp_path / "run", keep=2, quota=6 * needed, disk=VolatileDisk())
    for step in range(9):
        checkpoints.commit(snapshot(step), certified=step < 3)
        assert sum(file.stat().st_size for file in checkpoints.directory.rglob("*")) <= 6 * needed


def test_leftovers_of_an_interrupted_commit_go_and_their_numbers_are_not_used(tmp_path):
    checkpoints = run_with(tmp_path, (1,))
    left = checkpoints.directory / ".tmp-00000007"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    trash = checkpoints.directory / ".trash-00000003"
    trash.mkdir()
    assert checkpoints.commit(snapshot(2)).number == 2
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["gen-00000001", "gen-00000002"]


@attrs.define
class Thread:
    """A rank that is a thread: ranks meet at a barrier to exchange values."""

    rank: int
    size: int
    meeting: threading.Barrier
    table: list

    def gather(self, value):
        self.table[self.rank] = value
        self.meeting.wait(timeout=30)
        values = list(self.table)
        self.meeting.wait(timeout=30)
        return values


def on_all_ranks(path, work, size=3, disks=None):
    """Runs ``work(checkpoints, rank)`` on every rank; returns results or exceptions."""
    meeting, table = threading.Barrier(size), [None] * size

    def one(rank):
        disk = disks[rank] if disks else VolatileDisk()
        try:
            return work(Checkpoints(path, disk=disk, ranks=Thread(rank, size, meeting, table)), rank)
        except StorageError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def part(whole, rank, size=3):
    """What one of the ranks writes of a snapshot that all of them have."""
    mine = dealt({"model": whole.model, "optimizer": whole.optimizer}, size)[rank]
    return attrs.evolve(
        whole,
        model={name: value for name, value in whole.model.items() if ("model", name) in mine},
        optimizer={name: value for name, value in whole.optimizer.items() if ("optimizer", name) in mine},
        state={} if rank else whole.state,
    )


@pytest.mark.parametrize("readers", [1, 3, 5])
def test_several_ranks_write_one_state_that_any_number_reads(tmp_path, readers):
    whole = snapshot(7)
    committed = on_all_ranks(tmp_path, lambda checkpoints, rank: checkpoints.commit(part(whole, rank)))
    assert {(one.number, one.state_hash) for one in committed} == {(1, whole.state_hash())}
    names = {path.name for path in committed[0].path.glob("model*")}
    assert names == {"model.safetensors", "model-00001.safetensors", "model-00002.safetensors"}
    found = on_all_ranks(tmp_path, lambda checkpoints, rank: checkpoints.newest(), size=readers)
    assert [one[1].state_hash() for one in found] == [whole.state_hash()] * readers


def test_a_tensor_that_two_ranks_write_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="was written by two ranks"):
        on_all_ranks(tmp_path, lambda checkpoints, rank: checkpoints.commit(snapshot(7)))


def test_one_rank_that_fails_fails_all_and_the_previous_generation_stays(tmp_path):
    on_all_ranks(tmp_path, lambda checkpoints, rank: checkpoints.commit(part(snapshot(7), rank)))
    disks = [VolatileDisk(), VolatileDisk(), FailingDisk(fail_at=1)]
    failed = on_all_ranks(tmp_path, lambda checkpoints, rank: checkpoints.commit(part(snapshot(8), rank)), disks=disks)
    assert all(isinstance(one, StorageError) for one in failed)
    assert "rank 2" in str(failed[0])
    found = on_all_ranks(tmp_path, lambda checkpoints, rank: checkpoints.newest())
    assert [one[0].step for one in found] == [7, 7, 7]


def test_damage_that_one_rank_sees_makes_all_ranks_fall_back(tmp_path, monkeypatch):
    for step in (7, 8):
        on_all_ranks(tmp_path, lambda checkpoints, rank, step=step: checkpoints.commit(part(snapshot(step), rank)))
    real = checkpoints_module.read

    once = iter([True])

    def unreadable_for_one(generation):
        if generation.number == 2 and next(once, False):
            raise OSError(5, "Input/output error")
        return real(generation)

    monkeypatch.setattr(checkpoints_module, "read", unreadable_for_one)
    found = on_all_ranks(tmp_path, lambda checkpoints, rank: checkpoints.newest())
    assert [one[0].step for one in found] == [7, 7, 7]


def test_every_rank_verifies_the_files_of_all(tmp_path):
    for step in (7, 8):
        on_all_ranks(tmp_path, lambda checkpoints, rank, step=step: checkpoints.commit(part(snapshot(step), rank)))
    file = tmp_path / "checkpoints" / "gen-00000002" / "model-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest(quarantine=False)[0].step == 7
    assert checkpoints.rejected[0].reason == "model-00002.safetensors does not match its sha256"
