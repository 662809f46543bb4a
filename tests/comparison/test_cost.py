"""What a step costs and how far a model reaches, on models whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from muse_core.building import build_model
from muse_core.cli.cost import cost
from muse_core.comparison.cost import kept_by, memory_layers, training_cost
from muse_core.comparison.targets import DOCUMENTS, Target, measure_reach, open_target
from muse_core.contracts import KernelRequest
from muse_core.errors import StorageError
from muse_core.evaluation.reach import gradient_reach
from muse_core.model.dispatch import DispatchedKernel
from muse_core.model.precision import choose_precision
from muse_core.recipe import check_table

PRECISION = choose_precision(torch.device("cpu"), "fp32")


def build(*block, **model):
    table = {"name": "x", "model": {"width": 16, "depth": 1, "block": list(block), **model}, "train": {"device": "cpu"}}
    checked = check_table(table)
    return checked.recipe, build_model(checked.recipe, checked.registry, vocabulary_size=20)[0]


def test_a_step_trains_and_its_state_is_that_of_the_layers() -> None:
    recipe, model = build({"use": "fast-weights", "heads": 2, "convolution": 0})
    before = model.embedding.weight.detach().clone()
    found = training_cost(model, recipe, PRECISION, rows=3, length=10, warmup=1, repeats=2)
    assert found.state_bytes == 3 * 2 * 8 * 8 * 4, "rows × heads × K × M numbers in fp32"
    assert found.tokens_per_second == pytest.approx(30 / found.seconds) and found.seconds > 0
    assert (model.embedding.weight != before).any()
    assert found.peak_bytes is None and found.memory_bytes is None, "a CPU does not say"


def test_memory_layers_are_found_by_their_kind() -> None:
    recipe, model = build({"use": "fast-weights", "heads": 2}, "feed-forward", depth=3)
    assert [type(module).__name__ for module in memory_layers(model, recipe)] == ["FastWeights"] * 3
    assert memory_layers(*reversed(build("feed-forward"))) == []


def test_what_fast_weights_keep_is_counted_by_memory_and_not_by_view() -> None:
    """By a kernel whose kept tensors are known: both factors of each product, and each exponential."""
    recipe, model = build({"use": "fast-weights", "heads": 2})
    layer = memory_layers(model, recipe)[0]
    memory, leaf = torch.randn(7), torch.ones(3, requires_grad=True)

    def fast_weights(key, value):
        return (key * value).exp()

    layer.kernel = kernel = DispatchedKernel(KernelRequest("fast_weights", "cpu", "float32"), fast_weights, None)
    with kept_by("fast_weights", [layer]) as kept:
        alive = [layer.kernel(leaf, memory[:3]), layer.kernel(leaf, memory[4:]), leaf.exp()]
    assert layer.kernel is kernel and len(alive) == 3
    assert sorted(kept.values()) == [3 * 4, 3 * 4, 7 * 4], "two exponentials and one memory; a leaf needs no keeping"


def test_fast_weights_keep_their_inputs_at_least() -> None:
    recipe, model = build({"use": "fast-weights", "heads": 2})
    found = training_cost(model, recipe, PRECISION, rows=3, length=10, warmup=1, repeats=1)
    assert found.fast_weights_bytes is not None and found.fast_weights_bytes >= 3 * 10 * 3 * 16 * 4, "q, k and v"
    recipe, model = build("feed-forward")
    assert training_cost(model, recipe, PRECISION, rows=3, length=10, repeats=1).fast_weights_bytes is None


def test_the_median_of_an_even_number_of_reaches_lies_between_the_two_in_the_middle(monkeypatch) -> None:
    recipe, model = build("feed-forward")
    target = Target(
        path=Path("x"), recipe=recipe, model=model, precision=PRECISION, kernels=None, weights="", held_out=None
    )
    assert DOCUMENTS % 2 == 0
    found = iter(torch.arange(1.0, DOCUMENTS + 1, dtype=torch.float64))
    monkeypatch.setattr("muse_core.comparison.targets.gradient_reach", lambda *_: next(found)[None])
    told = measure_reach(target, 4)
    assert (told["low"], told["reach"], told["high"]) == (1.0, (1 + DOCUMENTS) / 2, DOCUMENTS)


def test_of_several_devices_a_run_takes_the_last_one_as_a_recipe_does(tmp_path, monkeypatch) -> None:
    asked = []

    def opened(path: Path, *, device: str | None, say: object) -> None:
        asked.append(device)
        raise StorageError("enough")

    monkeypatch.setattr("muse_core.comparison.targets.open_trained", opened)
    with pytest.raises(StorageError, match="enough"):
        open_target(tmp_path, ['train.device="cpu"', 'train.device="cuda:1"'], 20)
    assert asked == ["cuda:1"]


def test_reach_is_zero_beyond_a_window_and_what_autograd_says_within() -> None:
    ids = torch.randint(20, (2, 13), generator=torch.Generator().manual_seed(0))
    _, short = build({"use": "attention", "heads": 2, "window": 4})
    assert (gradient_reach(short, ids, PRECISION) == 0).all()
    _, model = build({"use": "attention", "heads": 2})
    embedded = model.embedding(ids[:, :-1]).detach().requires_grad_()
    scores = model.logits(model(embedded).hidden[:, -1])
    torch.nn.functional.cross_entropy(scores, ids[:, -1], reduction="sum").backward()
    norms = embedded.grad.norm(dim=-1)
    assert torch.allclose(gradient_reach(model, ids, PRECISION), (norms[:, 0] / norms[:, -1]).double(), rtol=1e-5)


def test_the_command_prints_a_table_and_keeps_the_numbers(tmp_path: Path) -> None:
    for name, block in (("a", '{ use = "fast-weights", heads = 2 }'), ("b", '"feed-forward"')):
        (tmp_path / f"{name}.toml").write_text(f'name = "{name}"\n[model]\nwidth = 16\ndepth = 1\nblock = [{block}]')
    output = tmp_path / "c.json"
    options = f"--length 8 --length 16 --tokens 32 --repeats 1 --device cpu --reach 12 --json {output}".split()
    targets = [str(tmp_path / "a.toml"), str(tmp_path / "b.toml")]
    result = CliRunner().invoke(cost, [*targets, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = json.loads(output.read_text())
    assert [(row["rows"], row["length"]) for row in rows if "rows" in row] == [(4, 8), (4, 8), (2, 16), (2, 16)]
    reach = {Path(row["target"]).name: row["reach"] for row in rows if "reach" in row}
    assert reach["a.toml"] > 0 and reach["b.toml"] == 0, "feed-forward layers pass nothing on"
    tables = [line.count("|") for line in result.output.splitlines() if line.startswith("|")]
    assert len(tables) == 6 and len(set(tables)) == 1, "a heading and a rule above four rows of as many cells"
    state = {Path(line.split("|")[1].strip()).name: float(line.split("|")[-2])
             for line in result.output.splitlines() if line.startswith("|") and ".toml" in line}
    held = next(row["state_bytes"] for row in rows if row["target"].endswith("a.toml") and row.get("length") == 16)
    assert state["b.toml"] == 0 and state["a.toml"] == pytest.approx(held / 1e6, rel=0.05), "of few bytes not 0.00"
    assert "a.toml, length 8: " in result.output and "None" not in result.output, "progress is for people"
    assert "| 4 × 8 |" in result.output and "gradient reach over 12 tokens" in result.output
    assert CliRunner().invoke(cost, [str(tmp_path / "none.toml")]).exit_code == 2


def test_each_kind_of_numbers_is_named_with_the_targets_that_it_is_of(tmp_path: Path) -> None:
    """On one kind of device bf16 and fp32 are speeds of two kinds too."""
    for name, precision in (("a", "fp32"), ("b", "bf16"), ("c", "fp32")):
        (tmp_path / f"{name}.toml").write_text(
            f'name = "{name}"\n[model]\nwidth = 16\ndepth = 1\nblock = ["feed-forward"]\n[train]\n'
            f'device = "cpu"\nprecision = "{precision}"\n'
        )
    targets = [str(tmp_path / f"{name}.toml") for name in "abc"]
    options = ["--length", "8", "--repeats", "1"]
    both = CliRunner().invoke(cost, [*targets, *options], catch_exceptions=False).output
    assert f"cpu, float32: {targets[0]}, {targets[2]}\n" in both
    assert f"cpu, bfloat16: {targets[1]}\n" in both and f"torch {torch.__version__}\n" in both
    one = CliRunner().invoke(cost, [targets[0], targets[2], *options], catch_exceptions=False).output
    assert one.startswith(f"cpu, float32; torch {torch.__version__}\n")
