"""One call tells what every layer does; a memory acts through the Hamiltonian; state does not grow with the text."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from muse_core.building import build_model
from muse_core.cli import muse
from muse_core.cli.run import main
from muse_core.errors import DataError, StorageError
from muse_core.evaluation.diagnostics import diagnose
from muse_core.evaluation.recording import recording
from muse_core.model.generation import generate
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table
from muse_core.testing.sequences import leaves, make_tokens
from muse_core.training.setup import set_up

N = 40


@pytest.fixture(scope="module")
def table(cache: Path) -> dict[str, Any]:
    """A memory, and after it a resolvent that it acts on."""
    memory = {"use": "fast-weights", "heads": 2, "period": 8, "filters": ["snr", "resonance"]}
    mixer = {"use": "resolvent", "heads": 4, "potential": ["non-hermitian", "memory-feedback"]}
    return {
        "name": "diagnosed",
        "data": {"use": "state-of-the-union", "cache": str(cache)},
        "model": {"width": 16, "depth": 2, "block": [memory, mixer, "feed-forward"]},
        "train": {"steps": 2, "batch_size": 2, "sequence_length": N, "precision": "fp32", "device": "cpu"},
        "evaluate": {"tokens": 80, "final_tokens": 80},
    }


@pytest.fixture(scope="module")
def setup(table: dict[str, Any]) -> Any:
    registry = load_plugins()
    return set_up(check_table(table, registry).recipe, registry)


def test_signals_and_measures_have_the_documented_keys_and_shapes(setup: Any) -> None:
    found = diagnose(setup, tokens=N + 1)
    layers = {f"blocks.{block}.{name}" for block in (0, 1) for name in ("fast-weights", "resolvent")}
    of_heads = ("broadening", "damped_potential", "decay", "lyapunov", "phase", "spectral_shift")
    shapes = {**dict.fromkeys(of_heads, (N, 4)), "theta": (N, 4, 2),
              "memory_before": (N, 2, 8), "gate": (N, 16)}
    assert [name for name in found.signals if name in of_heads] == sorted(of_heads), "in one order in every process"
    assert {name: tuple(next(iter(layers.values())).shape) for name, layers in found.signals.items()} == shapes
    metrics = {"broadening", "broadening_min", "broadening_max", "decay", "decay_min", "decay_max", "overdamped",
                "lyapunov", "lyapunov_min", "lyapunov_max",
                "memory_length_max", "non-hermitian/strength", "memory-feedback/strength", "energy", "rate",
                "snr/signal_to_noise", "snr/share_filtered", "resonance/modes", "resonance/share_filtered",
                "resonance/energy_kept"}
    assert found.metrics.keys() == metrics
    assert {layer for named in found.metrics.values() for layer in named} == layers
    numbers = [value for named in found.metrics.values() for value in named.values()]
    assert all(math.isfinite(value) for value in numbers) and found.metrics["memory-feedback/strength"]
    assert 1 <= found.metrics["resonance/modes"]["blocks.0.fast-weights"] <= 8
    lyapunov = found.signals["lyapunov"]["blocks.1.resolvent"].mean(0)
    assert lyapunov.mean().item() == pytest.approx(found.metrics["lyapunov"]["blocks.1.resolvent"], rel=1e-5)
    low, mean, high = found.ranges()["signal broadening", "blocks.0.resolvent"]
    assert low == pytest.approx(found.metrics["broadening_min"]["blocks.0.resolvent"]) and low < mean < high


def test_the_model_itself_is_left_as_it_was(setup: Any) -> None:
    before = {name: value.clone() for name, value in setup.model.state_dict().items()}
    loss = diagnose(setup, "We hold these truths to be self-evident.").loss
    assert loss == pytest.approx(math.log(257), rel=0.2)
    assert all(torch.equal(value, before[name]) for name, value in setup.model.state_dict().items())
    assert all(not layer.publish for block in setup.model.blocks for layer in [block.get_submodule("resolvent")])


def test_a_text_without_a_next_token_is_refused(setup: Any) -> None:
    with pytest.raises(DataError, match="a text of 1 token has nothing"):
        diagnose(setup, "W")


def test_start_and_trained_weights_of_a_run(table: dict[str, Any], tmp_path: Path) -> None:
    from muse_core.recipe import to_toml

    run = tmp_path / "run"
    (tmp_path / "recipe.toml").write_text(to_toml(table | {"train": table["train"] | {"learning_rate": 0.05}}))
    ended = CliRunner().invoke(main, [str(tmp_path / "recipe.toml"), "--run-dir", str(run)])
    assert ended.exit_code == 0, ended.output
    start, now = diagnose(run, weights="start"), diagnose(run)
    decay = start.signals["decay"]["blocks.0.resolvent"]
    low, high = decay[0].log().sort().values[[0, -1]].tolist()
    assert low == pytest.approx(math.log(0.001), abs=1e-3) and high == pytest.approx(math.log(0.3), abs=1e-3)
    assert (now.signals["decay"]["blocks.0.resolvent"] - decay).abs().max() > 1e-4
    shown = CliRunner().invoke(muse, ["diagnose", str(run), "--tokens", str(N), "--json"])
    assert shown.exit_code == 0, shown.output
    rows = {(row["quantity"], row["layer"]): row for row in json.loads(shown.output)["rows"]}
    row = rows["signal decay", "blocks.0.resolvent"]
    assert row["start"][0] < row["start"][2] and row["trained"] != row["start"]
    plain = CliRunner().invoke(muse, ["diagnose", str(run), "--text", "The state of the union is strong."])
    assert plain.exit_code == 0 and "memory-feedback/strength" in plain.output
    with pytest.raises(StorageError, match="holds no run"):
        diagnose(tmp_path / "nowhere")


def test_a_memory_acts_on_the_hamiltonian_and_not_only_on_the_stream(table: dict[str, Any]) -> None:
    """The memory's output is cut off, so that the stream does not know what it holds. Then another memory, and nothing
    else, changes θ; without the feedback's weight it does not."""
    registry = load_plugins()
    recipe = check_table(table, registry).recipe
    built, _ = build_model(recipe, registry, vocabulary_size=11, dtype="float64", publish_all=True)
    model = built.double().eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, N, 16, dtype=torch.float64, generator=generator)

    def theta(state: Any) -> torch.Tensor:
        seen = {}
        with torch.no_grad(), recording(model, lambda name, step, _: seen.setdefault(name, step.signals)):
            model(x, state, make_tokens(1, N))
        return seen["blocks.0.resolvent"]["theta"]

    with torch.no_grad():
        model.get_parameter("blocks.0.fast-weights.output.weight").zero_()
        state = model(x, None, make_tokens(1, N)).state
    other = state | {"0": state["0"] | {"fast-weights": dict(state["0"]["fast-weights"])}}
    memory = dict(other["0"]["fast-weights"]["memory"])
    memory["weights"] = memory["weights"] + torch.randn(memory["weights"].shape, dtype=torch.float64)
    other["0"]["fast-weights"]["memory"] = memory
    assert (theta(other) - theta(state)).abs().amax((0, 2, 3))[0] > 1e-3
    with torch.no_grad():
        model.get_parameter("blocks.0.resolvent.potentials.memory-feedback.potential.weight").zero_()
    assert torch.equal(theta(other), theta(state))


def test_the_state_of_a_model_does_not_grow_with_the_text(setup: Any) -> None:
    sizes = []
    for length in (1, 17, 300):
        with torch.no_grad():
            state = setup.model(torch.zeros(1, length, dtype=torch.long)).state
        sizes.append({name: value.untyped_storage().nbytes() for name, value in leaves(state).items()})
    assert {name: size for name, size in sizes[1].items() if name in sizes[0]} == sizes[0]
    assert sizes[1] == sizes[2], "300 tokens after 17"
    assert len(list(itertools.islice(generate(setup.model, [1] * 20, stream_period=8), 5))) == 5
