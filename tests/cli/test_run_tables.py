"""What a run prints of its kernels before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from muse_core.cli.run_tables import _all_stages, _steps, kernel_rows, kernels_in_short
from muse_core.recipe import read_recipe
from muse_core.training.setup import Setup, set_up

RECIPE = """\
format = 2
name = "kernels"
data = { use = "mqar", vocabulary = 64, pairs = 2 }
kernels = { backend = ["triton", "fla", "torch"] }

[model]
width = 32
depth = 1
block = [{ use = "resolvent", heads = 4, potential = ["hermitian"] }, "fast-weights"]

[train]
device = "cpu"
batch_size = 2
sequence_length = 32
"""


def made(recipe: Path, text: str) -> Setup:
    recipe.write_text(text)
    checked = read_recipe(recipe)
    return set_up(checked.recipe, checked.registry)


def test_a_run_names_backends_once_and_a_dry_run_every_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    setup = made(tmp_path / "recipe.toml", RECIPE)
    rows = kernels_in_short(setup)
    assert set(rows) == {"kernels", "not triton", "not fla"}
    backend, _, operations = rows["kernels"].partition(": ")
    assert backend == "torch" and {"causal_resolvent_apply", "fast_weights"} <= set(operations.split(", "))
    assert len(set(operations.split(", "))) == len(operations.split(", ")), "an operation is named twice"
    assert rows["not triton"] == "it compiles for CUDA, the tensors are on cpu", "refused for all, so none is named"
    assert rows["not fla"].endswith("(fast_weights)"), "what it does not offer is no news"
    whole = kernel_rows(setup)
    assert len(whole) > 3 and all("not triton: it compiles for CUDA" in row for row in whole.values())
    assert any("not fla: it does not have it" in row for row in whole.values())


def test_a_model_without_kernels_needs_none(tmp_path: Path) -> None:
    model = RECIPE[RECIPE.index("[model]"):RECIPE.index("[train]")]
    setup = made(tmp_path / "recipe.toml", RECIPE.replace(model, '[model]\nuse = "gru"\nwidth = 32\n\n'))
    assert kernels_in_short(setup) == kernel_rows(setup) == {"kernels": "none needed"}


@pytest.mark.parametrize("steps, cut, said", [
    (5, False, "5 of 9"), (5, True, "5 of 9 (stopped by train.max_seconds; go on with"), (0, False, None),
    (0, True, "0 of 9 (stopped by"),
])
def test_steps_are_told_where_a_stage_trained(tmp_path: Path, steps: int, cut: bool, said: str | None) -> None:
    summary = {"steps": steps, "planned_steps": 9, "stopped_by_time": cut}
    told = _steps(summary, tmp_path)
    assert (said is None and told == {}) or told["steps"].startswith(said)


def test_tokens_of_all_stages_are_printed_where_several_trained() -> None:
    last = {"train_tokens": 3840, "train_seconds": 0.1}
    told = _all_stages(last | {"train_tokens_all_stages": 44160, "train_seconds_all_stages": 1.9})
    assert told == {"all stages": "44,160 training tokens in 1.9 s; steps and speed are of the last one"}
    assert _all_stages(last | {"train_tokens_all_stages": 3840, "train_seconds_all_stages": 0.1}) == {}
    assert _all_stages(last) == {}, "of an earlier version"
