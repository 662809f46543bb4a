"""The exit gates: each passes a sound recipe, says so where it does not apply, and fails where it should."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import muse_kernels.torch
from muse_core import fault_injection
from muse_core.cli import muse
from muse_core.exit_gates import chunk, gates
from muse_core.exit_gates.bench import Bench
from muse_core.exit_gates.chunk import fast_weight_chunk
from muse_core.exit_gates.findings import Finding, Outcome, passed
from muse_core.exit_gates.health import finite_steps, perplexity_followed
from muse_core.exit_gates.needles import memory_capacity, memory_recall, needle_overhead
from muse_core.exit_gates.persistent import norm_persistent
from muse_core.exit_gates.rollback import forced_spike
from muse_core.exit_gates.shards import shard_boundaries
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import read_rows
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table
from muse_core.training.checkpointer import Checkpointer
from muse_core.training.monitors import ProbeBudget

PASS, FAIL, NOT_APPLICABLE = Outcome.PASS, Outcome.FAIL, Outcome.NOT_APPLICABLE
MEMORY = {"use": "fast-weights", "heads": 2, "period": 8, "filters": ["snr"]}
STEPS = 4


@pytest.fixture(scope="module")
def make(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bench]:
    """A bench of a tiny recipe; ``block`` and ``monitors`` are those of the recipe."""
    torch.set_num_threads(1)

    def build(*, block: Any = None, monitors: Any = (), steps: int = STEPS, data: Any = None) -> Bench:
        table = {
            "name": "tiny",
            "seed": 3,
            "data": data or {"use": "state-of-the-union", "tokenizer": "bytes", "cache": str(cache)},
            "model": {"width": 16, "depth": 1, "block": block or [MEMORY, "feed-forward"]},
            "train": {"batch_size": 4, "micro_batch": 2, "sequence_length": 20, "warmup_steps": 2,
                      "precision": "fp32", "device": "cpu"},
            "evaluate": {"tokens": 80, "final_tokens": 80},
            "kernels": {"backend": "torch"},  # whose functions the tests replace
            "monitors": list(monitors),
        }
        checked = check_table(table, load_plugins())
        return Bench(checked, tmp_path_factory.mktemp("gates"), Display(Console(quiet=True)), steps=steps)

    return build


@pytest.fixture(scope="module")
def sound(make: Callable[..., Bench]) -> Bench:
    """A recipe that passes, trained once."""
    return make(monitors=["gradient-safety", {"use": "niah-probe", "needles": 2, "every": 100}])


@pytest.fixture(scope="module")
def plain(make: Callable[..., Bench]) -> Bench:
    """A recipe that most gates do not concern."""
    return make(block=[{"use": "attention", "heads": 2}])


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_fails(finding: Finding, words: str) -> None:
    assert finding.outcome is FAIL and words in finding.reason, finding


@pytest.mark.parametrize(
    "gate", [finite_steps, perplexity_followed, needle_overhead, memory_capacity, forced_spike],
    ids=lambda gate: gate.__name__,
)  # fmt: skip
def test_a_sound_recipe_passes(gate: Callable[[Bench], Finding], sound: Bench) -> None:
    finding = gate(sound)
    assert finding.outcome is PASS, finding
    json.dumps(dict(finding.numbers), allow_nan=False)


@pytest.mark.parametrize(
    "gate, words",
    [(fast_weight_chunk, "no fast weights"), (needle_overhead, "no niah-probe"), (memory_capacity, "no linear memory"),
     (memory_recall, "no memory layer"),
     (norm_persistent, "no layer of the recipe has an option"), (shard_boundaries, "no layer of the recipe has")],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_what_does_not_concern_a_recipe_says_so(gate: Callable[[Bench], Finding], words: str, plain: Bench) -> None:
    finding = gate(plain)
    assert finding.outcome is NOT_APPLICABLE and words in finding.figure


def test_the_chunk_in_use_must_be_about_the_fastest(sound: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {8: 100.0, 16: 90.0, 32: 95.0, 64: 85.0}
    monkeypatch.setattr(chunk, "throughput", lambda bench, variants: speeds)
    assert fast_weight_chunk(sound).outcome is PASS
    speeds[64] = 79.0
    assert_fails(fast_weight_chunk(sound), "faster by 27% - set kernels.chunk = 8")


def test_throughput_is_measured_at_every_chunk(sound: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = muse_kernels.torch.fast_weights

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(options["chunk"])
        return original(*arguments, **options)

    monkeypatch.setattr(muse_kernels.torch, "fast_weights", watched)
    speeds = chunk.throughput(sound, {size: sound.variant({"kernels": {"chunk": size}}) for size in (8, 64)})
    assert set(speeds) == {8, 64} == set(seen) and all(speed > 0 for speed in speeds.values())


def test_a_chunk_that_changes_the_model_fails(sound: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    original = muse_kernels.torch.fast_weights

    def rough(*arguments: Any, chunk: int = 64, **options: Any) -> Any:
        output, final = original(*arguments, chunk=chunk, **options)
        return output * (1 + 1e-7 * chunk), final

    monkeypatch.setattr(chunk, "throughput", lambda bench, variants: dict.fromkeys((8, 16, 32, 64), 1.0))
    assert fast_weight_chunk(sound).outcome is PASS
    monkeypatch.setattr(muse_kernels.torch, "fast_weights", rough)
    assert_fails(fast_weight_chunk(sound), "the chunk changes the model")


@pytest.mark.parametrize("monitors, words", [([], "skip"), ([{"use": "gradient-safety", "policy": "halt"}], "halted")])
def test_a_non_finite_step_fails(make: Callable[..., Bench], monitors: list[Any], words: str) -> None:
    bench = make(block=["feed-forward"], monitors=monitors)
    calls = {"n": 0}

    def damage(result: Any) -> Any:
        calls["n"] += 1
        return result._replace(total=result.total * math.nan) if calls["n"] == 5 else result

    with fault_injection.installed({"loss": damage}):
        assert_fails(finite_steps(bench), words)


def test_fewer_steps_than_asked_fail(sound: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sound.trained is not None  # with as many steps as it was made for, whichever test comes first
    monkeypatch.setattr(sound, "steps", STEPS + 1)
    assert_fails(finite_steps(sound), "1 steps were not done")


@pytest.mark.parametrize(
    "change, words",
    [(lambda row: row | {"ppl_delta": row["ppl_delta"] and row["ppl_delta"] * 1.001}, "is not the difference"),
     (lambda row: {key: value for key, value in row.items() if key != "ppl_delta"}, "has no ppl_delta"),
     (lambda row: row | {"ppl_delta": 0.0 if row["ppl_delta"] is None else row["ppl_delta"]}, "is not the difference")],
    ids=["wrong", "missing", "not null at first"],
)  # fmt: skip
def test_a_wrong_ppl_delta_fails(sound: Bench, tmp_path: Path, change: Any, words: str) -> None:
    import attrs

    rows = [change(row) if row["event"] == "train" else row
            for row in read_rows(sound.trained.folder / "metrics.jsonl")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bench = Bench(sound.checked, tmp_path, sound.display, steps=STEPS)
    bench._trained = attrs.evolve(sound.trained, folder=tmp_path)
    assert_fails(perplexity_followed(bench), words)


def test_a_needle_probe_that_takes_too_long_fails(make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProbeBudget, "share_with_next", lambda self, passes: 0.0)
    bench = make(monitors=[{"use": "niah-probe", "needles": 2, "every": 1, "budget": 1.0}])
    finding = needle_overhead(bench)
    assert finding.numbers["probes"] == STEPS
    assert_fails(finding, "set its every to")


def test_a_kernel_that_forgets_fails_the_capacity_test(sound: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    original = muse_kernels.torch.fast_weights

    def leaky(query: Any, key: Any, value: Any, log_decay: Any, rate: Any, **options: Any) -> Any:
        return original(query, key, value, log_decay - 0.01, rate, **options)

    monkeypatch.setattr(muse_kernels.torch, "fast_weights", leaky)
    assert_fails(memory_capacity(sound), "does not hold what it should")


@pytest.mark.parametrize("hits, outcome", [(0, FAIL), (8, FAIL), (12, FAIL), (13, PASS), (32, PASS)])
def test_recall_must_be_above_that_of_a_model_that_ignores_the_key(
    sound: Bench, monkeypatch: pytest.MonkeyPatch, hits: int, outcome: Outcome
) -> None:
    from muse_niah_probe.monitor import NiahProbe

    original = NiahProbe.probe

    def probe(self: NiahProbe, model: Any) -> dict[str, float]:
        assert self.options.needles == 32
        return original(self, model) | {"recall": hits / 32}

    monkeypatch.setattr(NiahProbe, "probe", probe)
    finding = memory_recall(sound)
    assert finding.outcome is outcome, finding
    assert f"{hits} of 32" in finding.figure and "ignoring the key gives 25%" in finding.figure


def test_a_model_that_has_learned_nothing_fails_the_recall_gate(sound: Bench) -> None:
    assert_fails(memory_recall(sound), "does not recall more than a model that ignores the key")


def test_a_run_that_does_not_come_back_fails(sound: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once because the keeper's own check notices, once because the gate does."""
    original = Checkpointer.load
    again = iter(range(2))
    monkeypatch.setattr(sound, "train", lambda checked, name: Bench.train(sound, checked, f"{name}-{next(again)}"))

    def forgetful(self: Checkpointer, generation: Any, snapshot: Any) -> None:
        monkeypatch.setattr(self.state.optimizers, "load_state_dict", lambda tensors: None)
        original(self, generation, snapshot)

    monkeypatch.setattr(Checkpointer, "load", forgetful)
    report = gates.run_gates(sound, lambda *heard: None, {"forced spike": forced_spike})
    assert not report["passed"] and "does not come back" in report["gates"][0]["reason"]

    def disturbed(self: Checkpointer, generation: Any, snapshot: Any) -> None:
        original(self, generation, snapshot)
        next(self.state.model.parameters()).data.add_(1e-6)

    monkeypatch.setattr(Checkpointer, "load", disturbed)
    assert_fails(forced_spike(sound), "did not come back to what it was")


@pytest.mark.parametrize("monitors", [[], ["rollback"]], ids=["by the core", "from an onset before the spike"])
def test_a_task_is_rolled_back_and_its_memory_measured_without_text(make: Callable[..., Bench], monitors: Any) -> None:
    bench = make(block=[MEMORY, "feed-forward"], monitors=monitors, data={"use": "mqar", "vocabulary": 32, "pairs": 2})
    assert forced_spike(bench).outcome is PASS
    assert "tokens/s by chunk" in fast_weight_chunk(bench).figure  # how fast each is, a busy machine decides
    assert memory_capacity(bench).outcome is NOT_APPLICABLE


def test_a_spike_that_nothing_rolls_back_fails(make: Callable[..., Bench]) -> None:
    bench = make(block=["feed-forward"], monitors=[{"use": "gradient-safety", "policy": "halt"}])
    assert_fails(forced_spike(bench), "halted at step 5 by gradient-safety")


PLUGIN = """
    import attrs
    from muse_core.component import Component
    from muse_core.hookspecs import hookimpl

    @attrs.frozen(kw_only=True)
    class Options:
        '''A layer with shards.'''
        shard: int = 6
        '''Tokens of a shard.'''
        leak: bool = False
        '''Lets the gradient through.'''
        norm_persistent: bool = True
        '''Normalise.'''
        dead: bool = False
        '''Do not listen to norm_persistent.'''

    @hookimpl
    def muse_layers():
        yield Component("sharded", options=Options, implementation="{module}:Sharded")

    def __getattr__(name):
        import torch
        from muse_core.contracts import LayerOutput

        class Sharded(torch.nn.Module):
            def __init__(self, options, context):
                super().__init__()
                self.options = options
                self.map = torch.nn.Linear(context.width, context.width)

            def forward(self, x, state, signals, tokens):
                written = self.map(x)
                parts, carried = [], torch.zeros_like(written[:, 0])
                for part in written.split(self.options.shard, dim=1):
                    total = part.cumsum(1) + carried[:, None]
                    parts.append(total)
                    carried = total[:, -1] if self.options.leak else total[:, -1].detach()
                update = torch.cat(parts, 1)
                if self.options.norm_persistent and not self.options.dead:
                    update = update / (1 + update.norm(dim=-1, keepdim=True))
                return LayerOutput(update, {})

        if name == "Sharded":
            return Sharded
        raise AttributeError(name)
"""


@pytest.fixture
def sharded(install: Callable[..., str], make: Callable[..., Bench]) -> Callable[..., Bench]:
    install("muse-sharded", PLUGIN.replace("{module}", "muse_sharded_plugin"))
    return lambda **options: make(block=[{"use": "sharded", **options}], steps=3)


def test_a_gradient_across_a_shard_boundary_fails(sharded: Callable[..., Bench]) -> None:
    finding = shard_boundaries(sharded())
    assert finding.outcome is PASS and finding.numbers["largest_within"] > 0
    assert_fails(shard_boundaries(sharded(leak=True)), "crosses a boundary in blocks.0.sharded")


def test_norm_persistent_must_have_an_effect(sharded: Callable[..., Bench]) -> None:
    finding = norm_persistent(sharded())
    assert finding.numbers["bits_per_byte_with"] != finding.numbers["bits_per_byte_without"]
    assert_fails(norm_persistent(sharded(dead=True)), "a dead option")


def test_the_worse_setting_of_norm_persistent_fails(
    sharded: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    from muse_core.evaluation.held_out import HeldOut
    from muse_core.training.setup import Setup

    measure = Setup.evaluate

    def evaluate(self: Setup, *arguments: Any, **options: Any) -> HeldOut:
        on = self.recipe.model.options.block[0].layer.options.norm_persistent
        bits = 2.0 if on else 3.0
        found = measure(self, *arguments, **options)
        return attrs.evolve(found, loss=bits, bits_per_byte=bits, low=bits - 0.1, high=bits + 0.1)

    monkeypatch.setattr(Setup, "evaluate", evaluate)
    assert norm_persistent(sharded()).outcome is PASS
    assert_fails(norm_persistent(sharded(norm_persistent=False)), "worse beyond the intervals")


RECIPE = """\
format = 1
name = "tiny"
data = {{ use = "state-of-the-union", tokenizer = "bytes", cache = "{cache}" }}
model = {{ width = 16, depth = 1, block = ["feed-forward"] }}
train = {{ batch_size = 2, sequence_length = 16, device = "cpu", precision = "fp32" }}
evaluate = {{ tokens = 32, final_tokens = 32 }}
"""


def test_the_command_prints_every_gate_and_ends_with_four_when_one_fails(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(cache=cache))

    def run(*arguments: Any) -> Any:
        return CliRunner().invoke(muse, ["gates", str(recipe), "--steps", "3", *map(str, arguments)])

    good = run("--dir", tmp_path / "good")
    assert good.exit_code == 0, good.output
    report = json.loads((tmp_path / "good" / "gates.json").read_text())
    assert report["passed"] and report["steps"] == 3
    assert [entry["gate"] for entry in report["gates"]] == list(gates.GATES)
    for entry in report["gates"]:
        assert entry["figure"] in good.output and entry["outcome"] in good.output
    assert {entry["outcome"] for entry in report["gates"]} == {"PASS", "NOT APPLICABLE"}
    assert run("--dir", tmp_path / "good").exit_code == 3

    monkeypatch.setattr(gates, "GATES", gates.GATES)
    calls = {"n": 0}

    def damage(result: Any) -> Any:
        calls["n"] += 1
        return result._replace(total=result.total * math.nan) if calls["n"] == 2 else result

    with fault_injection.installed({"loss": damage}):
        bad = run("--dir", tmp_path / "bad")
    assert bad.exit_code == 4 and f"1 of {len(gates.GATES)} gates failed" in bad.output and "finite steps" in bad.output
    assert not json.loads((tmp_path / "bad" / "gates.json").read_text())["passed"]
    shutil.rmtree(tmp_path / "bad")


def test_a_gate_that_breaks_is_a_failure(plain: Bench) -> None:
    from muse_core.errors import StorageError

    def broken(bench: Bench) -> Finding:
        raise StorageError("the disk is full")

    heard = []
    report = gates.run_gates(plain, lambda *said: heard.append(said[:2]), {"a": broken, "b": lambda bench: passed("x")})
    assert [entry["outcome"] for entry in report["gates"]] == ["FAIL", "PASS"] and len(heard) == 4
    assert report["gates"][0]["reason"] == "the disk is full"
