"""C4: a generation in which anything was changed is rejected and the one before it loaded."""

from __future__ import annotations

import random
import shutil

import pytest

from muse_core.errors import StorageError
from muse_core.selftest.reliability.crash_states import snapshot
from muse_core.selftest.reliability.disks import VolatileDisk
from muse_core.storage.checkpoint import Checkpoints

pytestmark = pytest.mark.promise("C4")

FILES = ("model.safetensors", "optimizer.safetensors", "state.safetensors", "state.json", "MANIFEST.json")


@pytest.fixture
def run(tmp_path):
    checkpoints = Checkpoints(tmp_path, disk=VolatileDisk())
    for step in (10, 20, 30):
        checkpoints.commit(snapshot(step), certified=step == 20)
    return tmp_path


def newest(run):
    return run / "checkpoints" / "gen-00000003"


def assert_falls_back(run, to=20):
    generation, found = Checkpoints(run).newest(quarantine=False)
    assert generation.step == to
    assert found.state_hash() == snapshot(to).state_hash()


@pytest.mark.parametrize("name", FILES)
def test_truncated_anywhere(run, name):
    whole = (newest(run) / name).read_bytes()
    for length in {0, 1, len(whole) // 2, len(whole) - 1}:
        (newest(run) / name).write_bytes(whole[:length])
        assert_falls_back(run)
    (newest(run) / name).write_bytes(whole + b"\0")
    assert_falls_back(run)


@pytest.mark.parametrize("name", FILES)
def test_deleted(run, name):
    (newest(run) / name).unlink()
    assert_falls_back(run)


@pytest.mark.parametrize("name", FILES)
def test_exchanged_with_the_same_file_of_another_generation(run, name):
    shutil.copy(run / "checkpoints" / "gen-00000002" / name, newest(run) / name)
    assert_falls_back(run)


@pytest.mark.parametrize("name", FILES)
def test_exchanged_with_another_file_of_the_same_generation(run, name):
    other = FILES[FILES.index(name) - 1]
    shutil.copy(newest(run) / other, newest(run) / name)
    assert_falls_back(run)


@pytest.mark.parametrize("name", FILES)
def test_bit_flips(run, name, trial):
    flips = trial.size(100, 5000)
    rng = random.Random(f"{trial.seed}/{name}")
    whole = (newest(run) / name).read_bytes()
    for _ in range(flips):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (newest(run) / name).write_bytes(flipped)
        assert_falls_back(run)
    (newest(run) / name).write_bytes(whole)
    assert_falls_back(run, to=30)
    trial.say(f"{flips} bit flips in each file, all rejected")


def test_a_generation_under_the_number_of_another(run):
    shutil.rmtree(newest(run))
    shutil.copytree(run / "checkpoints" / "gen-00000001", newest(run))
    assert_falls_back(run)


def test_a_damaged_certificate_certifies_nothing_and_harms_nothing(run):
    marker = run / "checkpoints" / "gen-00000002" / "CERTIFIED.json"
    assert Checkpoints(run).certified_before(100)[0].step == 20
    shutil.copy(marker, newest(run))
    assert Checkpoints(run).certified_before(100)[0].step == 20, "a certificate of another generation counts"
    marker.write_bytes(marker.read_bytes()[:-1])
    assert Checkpoints(run).certified_before(100) is None
    assert_falls_back(run, to=30)


def test_what_is_damaged_is_set_aside_and_reported_and_its_number_not_used_again(run):
    (newest(run) / "model.safetensors").unlink()
    checkpoints = Checkpoints(run, disk=VolatileDisk())
    assert checkpoints.newest()[0].step == 20
    (rejected,) = checkpoints.rejected
    assert rejected.number == 3
    assert rejected.reason == "model.safetensors is missing"
    assert rejected.moved_to == run / "checkpoints" / "bad-00000003"
    assert rejected.moved_to.is_dir()
    committed = checkpoints.commit(snapshot(25))
    assert (committed.number, committed.parent) == (4, 2)


def test_all_damaged_is_an_error_and_never_a_fresh_start(run):
    for number in (1, 2, 3):
        (run / "checkpoints" / f"gen-0000000{number}" / "state.json").write_bytes(b"{}")
    for _ in range(2):  # the second time all have been set aside
        with pytest.raises(StorageError, match="no checkpoint can be used") as raised:
            Checkpoints(run, disk=VolatileDisk()).newest()
        assert raised.value.exit_code == 3


def test_a_disk_that_cannot_read_sets_nothing_aside(run, monkeypatch):
    from muse_core.storage.checkpoint import generation

    real = generation.read_file

    def unreadable(path, **options):
        if "gen-00000003" in str(path) and path.name == "model.safetensors":
            raise OSError(5, "Input/output error")
        return real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "read_file", unreadable)
        checkpoints = Checkpoints(run)
        assert checkpoints.newest()[0].step == 20
        assert checkpoints.rejected[0].moved_to is None
    assert_falls_back(run, to=30)


def test_there_is_nothing_to_resume_before_the_first_commit(tmp_path):
    assert Checkpoints(tmp_path).newest() is None
    (tmp_path / "checkpoints" / ".tmp-00000001").mkdir(parents=True)
    assert Checkpoints(tmp_path).newest() is None
