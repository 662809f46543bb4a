"""The exit gates on a model of this plugin: each applies, and those that judge its memory fail a sabotaged one."""

import pytest
import torch
from muse_mag import projection
from muse_mag.persistent import PersistentMemory
from rich.console import Console

from muse_core.exit_gates.bench import Bench
from muse_core.exit_gates.findings import Outcome
from muse_core.exit_gates.gates import GATES
from muse_core.exit_gates.persistent import norm_persistent
from muse_core.exit_gates.shards import shard_boundaries
from muse_core.metrics.console import Display
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table

MEMORY = {"use": "qk-projection", "heads": 2, "shard": 64}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    torch.set_num_threads(1)
    table = {
        "name": "tiny-mag",
        "seed": 3,
        "data": {"use": "state-of-the-union", "tokenizer": "bytes"},
        "model": {"width": 16, "depth": 1, "block": [{"use": "mag", "heads": 2, "window": 8, "memory": MEMORY}]},
        "train": {"batch_size": 2, "sequence_length": 20, "warmup_steps": 2, "precision": "fp32", "device": "cpu"},
        "evaluate": {"tokens": 80, "final_tokens": 80},
        "monitors": ["gradient-safety", {"use": "niah-probe", "needles": 2, "every": 100}],
    }
    checked = check_table(table, load_plugins())
    return Bench(checked, tmp_path_factory.mktemp("gates"), Display(Console(quiet=True)), steps=3)


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_it_applies(gate, bench):
    assert gate(bench).outcome is not Outcome.NOT_APPLICABLE


def test_shards_pass(bench):
    finding = shard_boundaries(bench)
    assert finding.outcome is Outcome.PASS, finding
    assert finding.numbers["largest_within"] > 0 and finding.numbers["smallest_to_persistent"] > 0


def test_a_memory_that_goes_on_over_a_boundary_fails(bench, monkeypatch):
    def whole(run, x, state, tokens, shard):
        return run(x, state, tokens)

    monkeypatch.setattr(projection, "by_shard", whole)
    finding = shard_boundaries(bench)
    assert finding.outcome is Outcome.FAIL and "crosses a boundary in blocks.0.mag.memory" in finding.reason


def test_persistent_memory_without_a_gradient_fails(bench, monkeypatch):
    original = PersistentMemory.moments

    def detached(self):
        return type(found := original(self))(*(side.detach() for side in found))

    monkeypatch.setattr(PersistentMemory, "moments", detached)
    finding = shard_boundaries(bench)
    assert finding.outcome is Outcome.FAIL
    assert "no gradient reaches the persistent memory of blocks.0.mag.memory" in finding.reason


def test_a_norm_that_nothing_listens_to_fails(bench, monkeypatch):
    again = iter(range(2))
    monkeypatch.setattr(bench, "train", lambda checked, name: Bench.train(bench, checked, f"{name}-{next(again)}"))
    original = projection.QueryProjection.forward

    def deaf(self, *arguments):
        self.norm_persistent = True
        return original(self, *arguments)

    monkeypatch.setattr(projection.QueryProjection, "forward", deaf)
    finding = norm_persistent(bench)
    assert finding.outcome is Outcome.FAIL and "a dead option" in finding.reason


@pytest.mark.parametrize("levels", [1, 2])
def test_shards_of_atlas_are_not_those_of_the_whole_layer(bench, levels):
    """One level has none, and of two the second goes on over them: test_atlas.py looks at the first."""
    memory = {"use": "atlas", "heads": 2, "chunk": 4}
    if levels == 2:
        memory |= {"levels": 2, "shard": 16, "global_chunk": 8}
    block = [{"use": "mag", "heads": 2, "window": 8, "memory": memory}]
    variant = bench.variant({"model": {"width": 16, "depth": 1, "block": block}})
    other = Bench(variant, bench.folder, bench.display, steps=3)
    assert shard_boundaries(other).outcome is Outcome.NOT_APPLICABLE
