"""Nine models with memory as gate, each broken in one way, and the one exit gate that each of them fails."""

import json
import math

import attrs
import pytest
import torch
from muse_mag import projection
from muse_mag.persistent import PersistentMemory
from muse_niah_probe.monitor import NiahProbe
from rich.console import Console

import muse_kernels.torch
from muse_core import fault_injection
from muse_core.exit_gates import chunk
from muse_core.exit_gates.bench import Bench
from muse_core.exit_gates.findings import Outcome
from muse_core.exit_gates.gates import GATES
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import read_rows
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table
from muse_core.training.checkpointer import Checkpointer
from muse_core.training.monitors import ProbeBudget

MEMORY = {"use": "qk-projection", "heads": 2, "shard": 64}
LONG = ("fast-weight chunk", "norm_persistent", "forced spike")
"""Gates that train or measure speed, seconds each: they are asked of the sound model and of the one that they fail."""


@pytest.fixture(scope="module")
def make(cache, tmp_path_factory):
    torch.set_num_threads(1)

    def build(**probe):
        table = {
            "name": "tiny-mag",
            "seed": 3,
            "data": {"use": "state-of-the-union", "tokenizer": "bytes", "cache": str(cache)},
            "model": {"width": 16, "depth": 1, "block": [{"use": "mag", "heads": 2, "window": 8, "memory": MEMORY}]},
            "train": {"batch_size": 2, "sequence_length": 20, "warmup_steps": 2, "precision": "fp32", "device": "cpu"},
            "evaluate": {"tokens": 80, "final_tokens": 80},
            "kernels": {"backend": "torch"},  # whose functions the tests replace
            "monitors": ["gradient-safety", {"use": "niah-probe", "needles": 2, "every": 100, **probe}],
        }
        checked = check_table(table, load_plugins())
        return Bench(checked, tmp_path_factory.mktemp("gates"), Display(Console(quiet=True)), steps=3)

    return build


@pytest.fixture(scope="module")
def sound(make):
    return make()


@pytest.fixture(autouse=True)
def _what_a_tiny_model_on_a_busy_machine_cannot_show(monkeypatch):
    """That it recalls after three steps, and that no chunk is slower than another."""
    original = NiahProbe.probe
    monkeypatch.setattr(NiahProbe, "probe", lambda self, model: original(self, model) | {"recall": 1.0})
    monkeypatch.setattr(chunk, "throughput", lambda bench, variants: dict.fromkeys((8, 16, 32, 64), 1.0))


def rough_chunks(bench, monkeypatch, tmp_path):
    original = muse_kernels.torch.fast_weights

    def rough(*arguments, chunk=64, **options):
        output, final = original(*arguments, chunk=chunk, **options)
        return output * (1 + 1e-7 * chunk), final

    monkeypatch.setattr(muse_kernels.torch, "fast_weights", rough)


def not_finite(bench, monkeypatch, tmp_path):
    calls = iter(range(100))

    def damage(result):
        return result._replace(total=result.total * math.nan) if next(calls) == 1 else result

    with fault_injection.installed({"loss": damage}):
        assert bench.trained


def other_differences(bench, monkeypatch, tmp_path):
    rows = read_rows(bench.trained.folder / "metrics.jsonl")
    wrong = [row | {"ppl_delta": row["ppl_delta"] * 1.1} if row.get("ppl_delta") else row for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    (tmp_path / "events.jsonl").write_bytes((bench.trained.folder / "events.jsonl").read_bytes())
    monkeypatch.setattr(bench, "_trained", attrs.evolve(bench.trained, folder=tmp_path))


def probes_at_every_step(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(ProbeBudget, "share_with_next", lambda self, passes: 0.0)


def leaking_kernel(bench, monkeypatch, tmp_path):
    original = muse_kernels.torch.fast_weights

    def leaky(query, key, value, log_decay, rate, **options):
        return original(query, key, value, log_decay - 0.01, rate, **options)

    assert bench.trained
    monkeypatch.setattr(muse_kernels.torch, "fast_weights", leaky)


def nothing_recalled(bench, monkeypatch, tmp_path):
    original = NiahProbe.probe
    monkeypatch.setattr(NiahProbe, "probe", lambda self, model: original(self, model) | {"recall": 8 / 32})


def deaf_to_the_norm(bench, monkeypatch, tmp_path):
    original = projection.QueryProjection.forward

    def deaf(self, *arguments):
        self.norm_persistent = True
        return original(self, *arguments)

    monkeypatch.setattr(projection.QueryProjection, "forward", deaf)


def comes_back_changed(bench, monkeypatch, tmp_path):
    original = Checkpointer.load

    def disturbed(self, generation, snapshot):
        original(self, generation, snapshot)
        next(self.state.model.parameters()).data.add_(1e-6)

    assert bench.trained
    monkeypatch.setattr(Checkpointer, "load", disturbed)


def unlearned_persistent_memory(bench, monkeypatch, tmp_path):
    original = PersistentMemory.moments

    def detached(self):
        return type(found := original(self))(*(side.detach() for side in found))

    monkeypatch.setattr(PersistentMemory, "moments", detached)


BROKEN = {
    "fast-weight chunk": rough_chunks,
    "finite steps": not_finite,
    "ppl_delta": other_differences,
    "needle overhead": probes_at_every_step,
    "memory capacity": leaking_kernel,
    "memory recall": nothing_recalled,
    "norm_persistent": deaf_to_the_norm,
    "forced spike": comes_back_changed,
    "shard boundaries": unlearned_persistent_memory,
}


def test_the_sound_model_passes_all(sound):
    assert {name: gate(sound) for name, gate in GATES.items() if gate(sound).outcome is not Outcome.PASS} == {}


@pytest.mark.parametrize("name", GATES)
def test_it_alone_fails(name, make, sound, monkeypatch, tmp_path):
    own = name in ("finite steps", "needle overhead")
    bench = make(every=1, budget=1.0) if name == "needle overhead" else make() if own else sound
    again = iter(range(9))
    train = bench.train
    monkeypatch.setattr(bench, "train", lambda checked, _, *more: train(checked, f"{name}-{next(again)}", *more))
    BROKEN[name](bench, monkeypatch, tmp_path)
    asked = {title: gate for title, gate in GATES.items() if title == name or title not in LONG}
    found = {title: gate(bench) for title, gate in asked.items()}
    assert [title for title, one in found.items() if one.outcome is not Outcome.PASS] == [name], found


@pytest.mark.parametrize("steps, share", [([100], 1 / 301), ([100, 400], 1 / 301), ([100, 400, 410], 2 / 312)])
def test_what_the_first_probe_compiles_is_said_and_not_judged(make, monkeypatch, steps, share):
    """A first probe of 50 s, later ones of 1 s, steps of 1 s: those of the run where there are any after the first."""
    bench, costs = make(every=300), iter([50.0, *[1.0] * 9])
    probes = [{"step": step, "niah-probe/seconds": next(costs)} for step in steps]
    rows = {"train": [{"step": 410, "seconds": 410.0}], "probe": probes}
    monkeypatch.setattr(type(bench.trained), "rows", lambda self, event: rows[event])
    monkeypatch.setattr(NiahProbe, "probe", lambda self, model: {"seconds": next(costs)})
    found = GATES["needle overhead"](bench)
    assert found.outcome is Outcome.PASS, found
    assert found.numbers["share"] == pytest.approx(share)
    assert found.numbers["seconds_of_first"] == 50.0 and "took 50.00 s" in found.figure
