"""S1: whatever a checkpoint directory holds, loading it runs no code and ends in a sentence."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import muse_core.metrics.jsonl
import muse_core.storage.checkpoint
from muse_core.errors import StorageError
from muse_core.metrics.jsonl import Records
from muse_core.selftest.reliability.crash_states import snapshot
from muse_core.selftest.reliability.disks import VolatileDisk
from muse_core.storage import canonical_json
from muse_core.storage.checkpoint import Checkpoints
from muse_core.storage.checkpoint.manifest import Manifest
from muse_core.storage.disk import Written

pytestmark = pytest.mark.promise("S1")


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


def pickled(trace):
    return pickle.dumps(Bomb(trace))


def torch_file(trace):
    buffer = io.BytesIO()
    torch.save({"weight": Bomb(trace)}, buffer)
    return buffer.getvalue()


def object_array(trace):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(trace)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def archive(trace):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickled(trace))
    return buffer.getvalue()


def header(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes):
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return header(json.dumps({"w": fields}).encode(), bytes(8))


TENSOR_FILES = {
    "length beyond the file": (2**62).to_bytes(8, "little") + b"{}",
    "no header": b"",
    "header that is no JSON": header(b"{{{{"),
    "deep header": header(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "offsets beyond the data": entry(data_offsets=[0, 2**40], shape=[2**38]),
    "negative offsets": entry(data_offsets=[-8, 0]),
    "shape that overflows": entry(shape=[2**33, 2**33]),
    "unknown dtype": entry(dtype="O"),
    "pickle as a dtype": entry(dtype="cos\nsystem\n"),
    "metadata that is not a table": header(b'{"__metadata__":[1]}'),
}
STATE_FILES = {
    "not UTF-8": b"\xff\xfe",
    "NaN": b'{"a":NaN}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "a huge number": b'{"a":' + b"9" * 100_000 + b"}",
    "repeated keys": b'{"cursor":1,"cursor":2}',
    "not a table": b"[]",
}


def forged(run, name, content):
    """Puts ``content`` into the newest generation with a manifest that vouches for it."""
    folder = run / "checkpoints" / "gen-00000002"
    manifest = Manifest.decode((folder / "MANIFEST.json").read_bytes())
    files = {**manifest.files, name: Written(len(content), hashlib.sha256(content).hexdigest())}
    (folder / name).write_bytes(content)
    table = {field: getattr(manifest, field) for field in ("generation", "parent", "step", "state", "digests")}
    (folder / "MANIFEST.json").write_bytes(Manifest(**table, files=files).encode())


@pytest.fixture
def run(tmp_path):
    checkpoints = Checkpoints(tmp_path, disk=VolatileDisk())
    for step in (10, 20):
        checkpoints.commit(snapshot(step))
    return tmp_path


@pytest.fixture
def never_unpickled(monkeypatch, tmp_path):
    """Fails the test if anything is unpickled, and gives the trace that a bomb would leave."""

    def refuse(*arguments, **options):
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(np, "load", refuse)
    trace = tmp_path / "exploded"
    yield trace
    assert not trace.exists()


def assert_falls_back(run):
    checkpoints = Checkpoints(run)
    assert checkpoints.newest(quarantine=False)[0].step == 10
    assert checkpoints.rejected[0].number == 2


def test_the_bomb_goes_off_where_pickles_are_loaded(tmp_path):
    pickle.loads(pickled(tmp_path / "exploded"))
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("hostile", [pickled, torch_file, object_array, archive])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.safetensors", "state.json"])
def test_pickles_in_place_of_files_run_no_code(run, hostile, name, never_unpickled):
    forged(run, name, hostile(never_unpickled))
    assert_falls_back(run)


@pytest.mark.parametrize("hostile", [pickled, torch_file, object_array, archive])
def test_a_pickle_in_place_of_the_manifest_runs_no_code(run, hostile, never_unpickled):
    (run / "checkpoints" / "gen-00000002" / "MANIFEST.json").write_bytes(hostile(never_unpickled))
    assert_falls_back(run)


@pytest.mark.parametrize("case", TENSOR_FILES)
def test_forged_tensor_files(run, case):
    forged(run, "model.safetensors", TENSOR_FILES[case])
    assert_falls_back(run)


@pytest.mark.parametrize("case", STATE_FILES)
def test_forged_state(run, case):
    forged(run, "state.json", STATE_FILES[case])
    assert_falls_back(run)


@pytest.mark.parametrize("case", STATE_FILES)
def test_forged_manifests(run, case):
    (run / "checkpoints" / "gen-00000002" / "MANIFEST.json").write_bytes(STATE_FILES[case])
    assert_falls_back(run)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"model.safetensors": {"bytes": "many", "sha256": 5}}},
        {"files": []},
        {"step": -1},
        {"step": True},
        {"generation": "2"},
        {"states": []},
        {"states": 5},
        {"digests": 7},
        {"format": 2},
    ],
)
def test_manifests_with_a_right_hash_and_wrong_content(run, changes):
    path = run / "checkpoints" / "gen-00000002" / "MANIFEST.json"
    table = canonical_json.decode(path.read_bytes())
    del table["sha256"]
    table |= changes
    table["sha256"] = hashlib.sha256(canonical_json.encode(table)).hexdigest()
    path.write_bytes(canonical_json.encode(table))
    assert_falls_back(run)


@pytest.mark.parametrize("name", ["../../outside", "CERTIFIED.json", "extra.safetensors"])
def test_a_manifest_cannot_have_other_files_read(run, name):
    forged(run, name, b"{}")
    assert_falls_back(run)


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_files_that_are_none(run, kind):
    path = run / "checkpoints" / "gen-00000002" / "model.safetensors"
    copy = run / "copy"
    path.rename(copy)
    if kind == "link":
        path.symlink_to(copy)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert_falls_back(run)


def test_a_generation_that_is_a_link_is_not_followed(run):
    generation = run / "checkpoints" / "gen-00000002"
    generation.rename(run / "elsewhere")
    generation.symlink_to(run / "elsewhere")
    assert_falls_back(run)


def test_strange_names_are_left_alone(run):
    for name in ("gen-3", "gen-00000009.old", "gen-99999999999999999999999", "..gen-00000009"):
        (run / "checkpoints" / name).mkdir()
    checkpoints = Checkpoints(run, disk=VolatileDisk())
    assert checkpoints.newest()[0].step == 20
    assert checkpoints.commit(snapshot(30)).number == 3


def test_a_directory_in_place_of_the_events_is_named(tmp_path):
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"events\.jsonl"):
        Records(tmp_path)


def test_the_modules_that_read_a_run_name_no_unpickler():
    folder = Path(muse_core.storage.checkpoint.__file__).parent
    files = [*folder.glob("*.py"), *folder.parent.glob("*.py"), Path(muse_core.metrics.jsonl.__file__)]
    assert len(files) >= 12
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "load":
                assert ast.unparse(node) == "safetensors.torch.load", file
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "pickle" not in ast.unparse(node), file
