"""C2: no state that a power failure may leave loses or corrupts what was acknowledged, and the experiment notices
when the code forgets a sync, renames too early or does not hash."""

from __future__ import annotations

import pytest
import safetensors.torch

from muse_core.selftest.reliability.crash_states import explore, record
from muse_core.storage import canonical_json
from muse_core.storage.checkpoint import Snapshot, checkpoints
from muse_core.storage.checkpoint.generation import describe

pytestmark = pytest.mark.promise("C2")

SEED = 20260101

FORGOTTEN_SYNCS = {
    "tensors": lambda path: path.endswith(".safetensors"),
    "state.json": lambda path: path.endswith("state.json"),
    "manifest": lambda path: path.endswith("MANIFEST.json"),
    "names of the generation": lambda path: path.rpartition("/")[2].startswith(".tmp-"),
    "names of the checkpoints": lambda path: path.endswith("/checkpoints"),
    "certificate": lambda path: path.endswith(".CERTIFIED.json.tmp"),
    "name of the certificate": lambda path: "/gen-" in path and not path.endswith(".tmp"),
    "events": lambda path: path.endswith("events.jsonl"),
    "metrics": lambda path: path.endswith("metrics.jsonl"),
    "recipe": lambda path: path.endswith(".recipe.toml.tmp"),
    "names of the run": lambda path: path == "run",
    "name of the run": lambda path: path == ".",
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return record(tmp_path_factory.mktemp("recorded"), commits=12)


def test_ten_thousand_crashes_lose_nothing(recording, trial):
    found = explore(recording, states=trial.size(18_000, 100_000), seed=trial.seed)
    assert found.problems == []
    assert found.distinct >= 10_000
    trial.say(f"{found.states} crashes, {found.distinct} different states, 0 problems")


def test_a_defect_after_the_crash_never_loads(recording, trial):
    found = explore(recording, states=trial.size(1_500, 15_000), seed=trial.seed, defects=True)
    assert found.problems == []
    assert found.distinct >= 1_000


@pytest.mark.parametrize("mutant", FORGOTTEN_SYNCS)
def test_a_forgotten_sync_is_noticed(tmp_path, mutant):
    forgotten = FORGOTTEN_SYNCS[mutant]
    recording = record(tmp_path, forgets=lambda call: call.kind == "fsync" and forgotten(call.path))
    assert explore(recording, states=4_000, seed=SEED, enough=1).problems


def test_a_sync_of_the_removed_before_their_files_go_is_needed(tmp_path):
    """Otherwise a generation may stand under its name with files missing."""
    recording = record(tmp_path)
    calls = recording.calls
    for index, call in enumerate(calls):
        if call.kind == "rename" and ".trash-" in call.value:
            sync = next(i for i in range(index, len(calls)) if calls[i].kind == "fsync")
            calls[sync] = calls[sync]._replace(kind="mark", value={})
    assert explore(recording, states=4_000, seed=SEED, enough=1).problems


def test_a_rename_before_the_syncs_is_noticed(tmp_path):
    recording = record(tmp_path)
    early = []
    held_back = []
    for call in recording.calls:
        if call.kind == "fsync" and ".tmp-" in call.path:
            held_back.append(call)
            continue
        early.append(call)
        if call.kind == "rename" and "/gen-" in call.value:
            early += held_back
            held_back = []
    assert len(early) == len(recording.calls)
    recording.calls[:] = early
    assert explore(recording, states=4_000, seed=SEED, enough=1).problems


def test_missing_hashes_are_noticed(recording, monkeypatch):
    def read_unverified(generation, rank=0):
        parts = {
            part: safetensors.torch.load((generation.path / f"{part}.safetensors").read_bytes())
            for part in ("model", "optimizer", "state")
        }
        table = canonical_json.decode((generation.path / "state.json").read_bytes())
        return Snapshot(generation.step, **parts, json=table)

    monkeypatch.setattr(checkpoints, "read", read_unverified)
    assert describe is checkpoints.describe
    found = explore_until_corrupt(recording)
    assert "another content" in found


def explore_until_corrupt(recording):
    try:
        return explore(recording, states=1_500, seed=SEED, defects=True, enough=1).problems[0]
    except Exception as error:  # without hashes a cut file reaches the decoder, which may raise anything
        return f"another content: {error!r}"
