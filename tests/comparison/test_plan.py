"""Plans are as strict as recipes, and say which runs there are."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import attrs
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from muse_core.building import build_model
from muse_core.cli.compare import compare
from muse_core.comparison.cells import chosen_values, reported_cells, scores_by_value, sweepless, tuning_cells
from muse_core.comparison.parameters import _text, departures
from muse_core.comparison.plan import read_plan
from muse_core.comparison.report import compose, text_of
from muse_core.comparison.runs import Comparison
from muse_core.contracts import Batch, Tokens
from muse_core.errors import RecipeError, StorageError
from muse_core.recipe import read_recipe, to_toml
from muse_core.testing.cases import installed

PLANS = sorted((Path(__file__).parents[2] / "recipes" / "experiments").glob("*.plan.toml"))
RECIPE = 'name = "tiny"\n[model]\nblock = ["feed-forward"]\n'
PLAN = """\
name = "two"
baseline = "one"
seeds = [1, 2]
arms = [{ name = "one", recipe = "r.toml" }, { name = "other", recipe = "r.toml", set = ["model.depth=3"] }]
[tune]
key = "train.learning_rate"
values = [1e-3, 2e-3]
"""


@pytest.fixture
def plan(tmp_path: Path):
    def write(text: str = PLAN) -> Path:
        (tmp_path / "r.toml").write_text(RECIPE)
        (tmp_path / "p.toml").write_text(text)
        return tmp_path / "p.toml"

    return write


def finish(cell, score: float | str) -> None:
    cell.path.mkdir(parents=True)
    (cell.path / "summary.json").write_text(json.dumps({"held_out_bits_per_byte": score}))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.name)
def test_the_plans_of_the_project_hold_recipes_that_can_be_built(path: Path) -> None:
    read = read_plan(path)
    values = {variant.name: None for variant in read.plan.variants}
    cells = [*tuning_cells(read, Path("x")), *reported_cells(read, Path("x"), values)]
    # Seeds are whole numbers, as a plan that is read has them.
    for cell in {(one.variant.name, one.value, one.tuning): one for one in cells}.values():
        read_recipe(cell.recipe, cell.overrides, installed())


@torch.no_grad()
def broadening(recipe: Path, overrides: tuple[str, ...]) -> list[torch.Tensor]:
    """Γ + η (H,) of each resolvent of a recipe's model at its start, averaged over random tokens."""
    checked = read_recipe(recipe, (*overrides, 'train.device="cpu"'))
    model, _ = build_model(
        checked.recipe, checked.registry, vocabulary_size=257, device=torch.device("cpu"), dtype="float32"
    )
    found = []
    for module in model.modules():
        if type(module).__name__ == "Resolvent":
            x = torch.randn(1, 16, checked.recipe.model.options.width)
            _, decay = module.diagonal(x, {}, Tokens(torch.arange(16)[None]))
            found.append(decay.mean((0, 1)) + module.dynamics()[0].imag)
    return found


@pytest.mark.parametrize("name", ["ablations", "base_ablations", "hermitian"])
def test_without_a_learned_decay_every_head_starts_at_the_baselines_sum_of_decay_and_broadening(name: str) -> None:
    """θ depends on Γ + η only, so an variant that has another sum at its start tells nothing of what Γ is worth."""
    read = read_plan(PLANS[0].parent / f"{name}.plan.toml")
    cells = reported_cells(read, Path("x"), {variant.name: None for variant in read.plan.variants})
    starts = {
        cell.variant.name: broadening(cell.recipe, cell.overrides)
        for cell in cells
        if cell.seed == read.plan.seeds[0]
        and cell.variant.name in {read.plan.baseline, "hermitian", "fixed-decay", "phase1"}
    }
    expected = starts.pop(read.plan.baseline)[0]
    assert {"hermitian", "fixed-decay"} <= starts.keys()
    for name, start in starts.items():
        assert start
        torch.testing.assert_close(torch.stack(start), expected.expand(len(start), -1), rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("seeds = [1, 2]", "seed = [1, 2]", "p.toml:3: seed: a plan has no key 'seed' - did you mean 'seeds'?"),
        ('baseline = "one"', 'baseline = "none"', "baseline 'none' is not one of the variants one, other"),
        ('name = "other"', 'name = "one"', "two variants are called 'one'"),
        ('name = "other"', 'name = "report.md"', "a variant is called 'report.md', as is what a comparison writes"),
        ('name = "other"', 'name = "run.lock"', "a variant is called 'run.lock', as is what a comparison writes"),
        ("seeds = [1, 2]", "seeds = [0, 1]", "seed 0 is both tuned and reported"),
        ("model.depth=3", "model.depth", "arms[1].set: 'model.depth' has no '='"),
        ("model.depth=3", "seed=3", "arms[1].set: seed is the plan's own business"),
        ("train.learning_rate", "train..rate", "tune.key"),
        ("values = [1e-3, 2e-3]", "values = []", "tune.values"),
    ],
)
def test_a_wrong_plan_is_refused_in_a_sentence(plan, before: str, after: str, says: str) -> None:
    assert before in PLAN
    with pytest.raises(RecipeError) as error:
        read_plan(plan(PLAN.replace(before, after)))
    assert says in str(error.value)


def test_a_recipe_in_place_of_a_plan_and_a_plan_in_place_of_a_recipe_are_named(plan) -> None:
    path = plan()
    with pytest.raises(RecipeError, match=r"r\.toml: this is a recipe, and a plan is asked for") as error:
        read_plan(path.parent / "r.toml")
    assert len(error.value.problems) == 1
    with pytest.raises(RecipeError, match=r"p\.toml: this is a plan of a comparison - run") as error:
        read_recipe(path)
    assert len(error.value.problems) == 1


def test_the_sweep_comes_first_and_its_best_value_is_reported_with_other_seeds(plan, tmp_path: Path) -> None:
    read, out = read_plan(plan()), tmp_path / "out"
    sweep = tuning_cells(read, out)
    assert [(c.variant.name, c.value, c.seed) for c in sweep] == [
        ("one", 1e-3, 0), ("other", 1e-3, 0), ("one", 2e-3, 0), ("other", 2e-3, 0)]
    assert all('evaluate.split="validation"' in c.overrides for c in sweep)
    for cell, score in zip(sweep[:3], (2.0, 1.5, 1.9)):
        finish(cell, score)
    assert chosen_values(read.plan, sweep) == {"one": 2e-3}, "a variant whose sweep is not complete must wait"
    finish(sweep[3], 1.6)
    values = chosen_values(read.plan, sweep)
    assert values == {"one": 2e-3, "other": 1e-3}
    reported = reported_cells(read, out, values)
    assert [(c.variant.name, c.value, c.seed) for c in reported] == [
        ("one", 2e-3, 1), ("other", 1e-3, 1), ("one", 2e-3, 2), ("other", 1e-3, 2)]
    assert all('evaluate.split="test"' in c.overrides for c in reported)
    assert all(f"train.learning_rate={c.value}" in c.overrides for c in reported)


def test_a_value_whose_run_failed_is_not_chosen(plan, tmp_path: Path) -> None:
    read, out = read_plan(plan()), tmp_path / "out"
    sweep = tuning_cells(read, out)
    for cell, score in zip(sweep, (2.0, 1.5, 1.0, 1.6)):
        finish(cell, score)
    (sweep[2].path / "summary.json").unlink()
    (sweep[2].path / "failed.txt").write_text("exit code 4: it diverged\n")
    assert chosen_values(read.plan, sweep)["one"] == 1e-3


def test_a_value_whose_run_gave_no_number_is_not_chosen(plan, tmp_path: Path) -> None:
    """The first value is: a NaN is neither larger nor smaller than another score."""
    read = read_plan(plan())
    sweep = tuning_cells(read, tmp_path / "out")
    for cell in sweep:
        finish(cell, "nan" if cell.value == 1e-3 or cell.variant.name == "other" else 2.0)  # as runs write it
    assert chosen_values(read.plan, sweep) == {"one": 2e-3}
    assert sweepless(read.plan, sweep) == ["other"]


def test_accuracy_is_better_when_higher(plan, tmp_path: Path) -> None:
    read, out = read_plan(plan('measure = "accuracy"\n' + PLAN)), tmp_path / "out"
    sweep = tuning_cells(read, out)
    for cell, score in zip(sweep, (0.2, 0.9, 0.8, 0.1)):
        cell.path.mkdir(parents=True)
        (cell.path / "summary.json").write_text(json.dumps({"held_out_accuracy": score}))
    assert chosen_values(read.plan, sweep) == {"one": 2e-3, "other": 1e-3}


@pytest.mark.parametrize("of_one", [(1.0, 2.0, 3.0), (3.0, 2.0, 1.0)], ids=["smallest", "largest"])
def test_a_best_value_at_the_edge_of_the_sweep_is_said_so(plan, tmp_path: Path, of_one: tuple[float, ...]) -> None:
    read, out = read_plan(plan(PLAN.replace("[1e-3, 2e-3]", "[1e-3, 2e-3, 3e-3]"))), tmp_path / "out"
    scores = (score for pair in zip(of_one, (3.0, 1.0, 2.0)) for score in pair)
    for cell, score in zip(tuning_cells(read, out), scores, strict=True):
        finish(cell, score)
    report = compose(read.plan, Comparison(read, out).runs())
    assert report["at_the_edge"] == ["one"] and "widen the sweep" in text_of(report)


def test_a_folder_with_another_recipe_is_refused(plan, tmp_path: Path) -> None:
    cell = tuning_cells(read_plan(plan()), tmp_path / "out")[0]
    assert not cell.started()
    cell.path.mkdir(parents=True)
    (cell.path / "recipe.toml").write_text(to_toml(read_recipe(cell.recipe, cell.overrides).resolved))
    assert cell.started()
    (cell.path / "recipe.toml").write_text(to_toml(read_recipe(cell.recipe, ["seed=9"]).resolved))
    with pytest.raises(StorageError, match="holds a run of another recipe"):
        cell.started()
    (cell.path / "recipe.toml").write_text("name = 3")
    with pytest.raises(StorageError, match="cannot be read as a recipe any more"):
        cell.started()


def test_a_finished_run_of_another_recipe_is_not_counted(plan, tmp_path: Path) -> None:
    path = plan()
    cell = tuning_cells(read_plan(path), tmp_path / "out")[0]
    finish(cell, 1.0)
    (cell.path / "recipe.toml").write_text(to_toml(read_recipe(cell.recipe, ["seed=9"]).resolved))
    result = CliRunner().invoke(compare, [str(path), "-o", str(tmp_path / "out"), "--report"])
    assert result.exit_code == 3 and "holds a run of another recipe" in result.output


@pytest.mark.parametrize("document", [[0, 0], [0, 1]], ids=["one document", "two"])
def test_a_report_on_one_document_with_one_seed_shows_no_interval(plan, tmp_path: Path, document: list[int]) -> None:
    read, out = read_plan(plan(PLAN.partition("[tune]")[0].replace("[1, 2]", "[1]"))), tmp_path / "out"
    for cell, nats in zip(reported_cells(read, out, {"one": None, "other": None}), ([8.0, 9.0], [6.0, 7.0])):
        finish(cell, sum(nats))
        told = dict.fromkeys(("parameters", "train_tokens", "train_seconds", "tokens_per_second", "stopped_by_time"), 0)
        (cell.path / "summary.json").write_text(
            json.dumps({"held_out_bits_per_byte": sum(nats) / 20, "device": "cpu"} | told))
        rows = {"document": document, "nats": nats, "hits": [0, 0], "bytes": [10, 10], "tokens": [10, 10]}
        (cell.path / "held_out.json").write_text(json.dumps(rows | {"by_document": True}))
    text = text_of(compose(read.plan, Comparison(read, out).runs()))
    line = next(line for line in text.splitlines() if line.startswith("| other"))
    assert "| 0.7647 |" in line and (" to " in line) == (document == [0, 1])
    assert ("there is no interval" in text) == (document == [0, 0])


def test_a_report_says_which_variants_other_kernels_computed(plan, tmp_path: Path) -> None:
    read, out = read_plan(plan(PLAN.partition("[tune]")[0])), tmp_path / "out"
    told = dict.fromkeys(("parameters", "train_tokens", "train_seconds", "tokens_per_second", "stopped_by_time"), 0)
    cells = reported_cells(read, out, {"one": None, "other": None})
    for cell in cells:
        finish(cell, 1.0)

    def computed(**backends: str) -> None:
        for cell in cells:
            (cell.path / "summary.json").write_text(
                json.dumps({"held_out_bits_per_byte": 1.0, "device": "cuda"} | told))
            rows = {"document": [0], "nats": [1.0], "hits": [0], "bytes": [1], "tokens": [1], "by_document": True}
            (cell.path / "held_out.json").write_text(json.dumps(rows))
            kernels = [("fast_weights key=128 value=256", backends[cell.variant.name]), ("gated_norm", "triton")]
            table = {"format": 1, "recipe": {"seed": 1}, "kernels": [dict(request=r, backend=b) for r, b in kernels]}
            (cell.path / "muse.lock.toml").write_text(to_toml(table))

    computed(one="triton", other="torch")
    report = compose(read.plan, Comparison(read, out).runs())
    assert report["arms"][1]["kernels"] == {"fast_weights": ["torch"], "gated_norm": ["triton"]}
    assert "fast_weights is computed by triton in one, by torch in other: their times compare" in text_of(report)
    assert "gated_norm is" not in text_of(report)
    computed(one="triton", other="triton")
    assert "is computed by" not in text_of(compose(read.plan, Comparison(read, out).runs()))


def ended(cell, documents: list[int], rows: dict[str, list[float]], **more: float) -> None:
    """A finished run and what it found of every document."""
    cell.path.mkdir(parents=True)
    told = dict.fromkeys(("parameters", "train_tokens", "train_seconds", "tokens_per_second", "stopped_by_time"), 0)
    (cell.path / "summary.json").write_text(json.dumps({"device": "cpu"} | told | more))
    (cell.path / "held_out.json").write_text(json.dumps({"document": documents, "by_document": True} | rows))


@pytest.mark.parametrize("measure", ["loss", "bits_per_byte", "accuracy"])
def test_a_report_compares_the_seeds_that_both_have_in_what_the_plan_measures(plan, tmp_path: Path, measure) -> None:
    text = f'measure = "{measure}"\n' + PLAN.partition("[tune]")[0].replace("[1, 2]", "[1, 2, 3]")
    read, out = read_plan(plan(text)), tmp_path / "out"
    means, nats = {"one": [], "other": []}, {"one": [], "other": []}
    for cell in reported_cells(read, out, {"one": None, "other": None}):
        if (cell.variant.name, cell.seed) == ("one", 3):
            continue
        of_rows = [float(len(nats[cell.variant.name]) + place + 3) for place in range(2)]
        nats[cell.variant.name].append(sum(of_rows) + (cell.variant.name == "other"))
        means[cell.variant.name].append(0.1 * sum(of_rows))
        of_rows[1] += cell.variant.name == "other"
        rows = {"nats": of_rows, "hits": [2 * one for one in of_rows], "bytes": [20, 30], "tokens": [10, 30]}
        ended(cell, [4, 7], rows, **{f"held_out_{measure}": means[cell.variant.name][-1], "train_seconds": cell.seed})
    one, other = compose(read.plan, Comparison(read, out).runs())["arms"]
    assert one["seeds"] == [1, 2] and other["seeds"] == [1, 2, 3]
    assert one["mean"] == pytest.approx(sum(means["one"]) / 2)
    assert other["mean"] == pytest.approx(sum(means["other"]) / 3)
    assert (one["seconds"], other["seconds"]) == (1.5, 2.0) and "against_baseline" not in one
    pairs = list(zip(nats["other"], nats["one"]))
    due = [2 * (mine - theirs) / 40 if measure == "accuracy" else mine / theirs for mine, theirs in pairs]
    assert other["against_baseline"]["by_seed"] == pytest.approx(tuple(due))


@pytest.mark.parametrize(("measure", "key"), [("loss", "tokens"), ("bits_per_byte", "bytes")])
def test_one_seed_on_other_text_is_enough_to_compare_none(plan, tmp_path: Path, measure: str, key: str) -> None:
    """As many tokens in all, of which one document has one more and one has one less."""
    read, out = read_plan(plan(f'measure = "{measure}"\n' + PLAN.partition("[tune]")[0])), tmp_path / "out"
    for cell in reported_cells(read, out, {"one": None, "other": None}):
        read_of = [9, 11] if (cell.variant.name, cell.seed) == ("other", 2) else [10, 10]
        rows = {"nats": [1.0, 2.0], "hits": [0, 0], "bytes": [10, 10], "tokens": [10, 10]} | {key: read_of}
        ended(cell, [4, 7], rows, **{f"held_out_{measure}": 0.1})
    _, other = compose(read.plan, Comparison(read, out).runs())["arms"]
    assert "against_baseline" not in other and other["other_text"] == "20 of 2 documents and 20 of 2 documents"


def test_runs_of_which_one_counts_rows_for_their_first_document_are_not_compared(plan, tmp_path: Path) -> None:
    read, out = read_plan(plan(PLAN.partition("[tune]")[0].replace("[1, 2]", "[1]"))), tmp_path / "out"
    for cell in reported_cells(read, out, {"one": None, "other": None}):
        rows = {"nats": [1.0, 2.0], "hits": [0, 0], "bytes": [10, 10], "tokens": [10, 10]}
        ended(cell, [4, 7], rows, held_out_bits_per_byte=0.1)
        if cell.variant.name == "other":
            (cell.path / "held_out.json").write_text(json.dumps({"document": [4, 7]} | rows))
    _, other = compose(read.plan, Comparison(read, out).runs())["arms"]
    assert "an earlier version" in other["other_text"]


def test_watched_metrics_are_reduced_by_their_names_from_first_to_last(plan, tmp_path: Path) -> None:
    text = 'watch = ["*/rate", "*/decay_min", "*/decay_max"]\n' + PLAN.partition("[tune]")[0]
    read, out = read_plan(plan(text)), tmp_path / "out"
    for cell in reported_cells(read, out, {"one": None}):
        ended(cell, [0], {"nats": [1.0], "hits": [0], "bytes": [10], "tokens": [10]}, held_out_bits_per_byte=0.1)
        rows = [
            {"event": event, "sequence": number, "attempt": 1, "step": number,
             **{f"{layer}/{name}": value + 10 * number + 100 * cell.seed + 1000 * (layer == "b")
                for layer in "ab" for name, value in (("rate", 1.0), ("decay_min", 2.0), ("decay_max", 3.0))}}
            for number, event in enumerate(("train", "probe", "train", "eval", "final"))
        ]
        (cell.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compose(read.plan, Comparison(read, out).runs())["watched"]["one"]
    assert found["*/rate"] == [1 + 10 * n + 150 + 500 for n in (0, 2, 4)], "means over layers and seeds"
    assert found["*/decay_min"] == [2 + 10 * n + 100 for n in (0, 2, 4)]
    assert found["*/decay_max"] == [3 + 10 * n + 1200 for n in (0, 2, 4)]


def test_a_value_is_judged_by_its_mean_over_all_seeds_of_the_sweep(plan, tmp_path: Path) -> None:
    read, out = read_plan(plan(PLAN + "seeds = [0, 5]\n")), tmp_path / "out"
    sweep = [cell for cell in tuning_cells(read, out) if cell.variant.name == "one"]
    scores = {(1e-3, 0): 1.0, (1e-3, 5): 3.0, (2e-3, 0): 1.9, (2e-3, 5): 1.9}
    for cell in sweep[:3]:
        finish(cell, scores[cell.value, cell.seed])
    assert dict(scores_by_value(read.plan, sweep)).keys() == {1e-3}, "a value with a run to come has no mean"
    finish(sweep[3], scores[sweep[3].value, sweep[3].seed])
    assert chosen_values(read.plan, sweep)["one"] == 2e-3


def test_a_run_that_was_finished_after_it_failed_has_not_failed(plan, tmp_path: Path) -> None:
    cell = tuning_cells(read_plan(plan()), tmp_path / "out")[0]
    cell.path.mkdir(parents=True)
    (cell.path / "failed.txt").write_text("exit code 4: it diverged\n")
    assert cell.settled() and cell.failure() == "exit code 4: it diverged"
    (cell.path / "summary.json").write_text('{"held_out_bits_per_byte": 2.0}')
    assert cell.settled() and cell.failure() is None


@pytest.mark.parametrize(("measure", "due"), [("loss", [2.0, 1.0, 1.0]), ("bits_per_byte", [6.0, 0.0, 9.0])])
def test_variants_are_tried_on_the_text_that_they_will_be_measured_on(plan, measure: str, due: list[float]) -> None:
    """The plan's split; counted labels or their bytes by document and row."""
    asked = []
    labels, mask = torch.tensor([[3, 3, 0], [9, 9, 9]]), torch.tensor([[True, True, True], [False, False, True]])

    def held_out_batches(split: str, length: int, **more: int) -> list[Batch]:
        asked.append((split, length, more["tokens"], more["span"]))
        return [Batch(labels, labels, mask, None)]

    def held_out_documents(split: str, length: int, **more: int) -> np.ndarray:
        asked.append((split, length, more["tokens"], more["span"]))
        return np.array([[4, 4, 5], [5, 5, 5]])

    evaluate = SimpleNamespace(final_tokens=60, lengths=(1, 4))
    setup = SimpleNamespace(
        recipe=SimpleNamespace(evaluate=evaluate, train=SimpleNamespace(sequence_length=3)),
        corpus=SimpleNamespace(byte_lengths=np.arange(10), tokenizer=SimpleNamespace(digest="t"), digest="d"),
        held_out_batches=held_out_batches, held_out_documents=held_out_documents,
    )
    found = _text(setup, read_plan(plan(f'split = "test"\nmeasure = "{measure}"\n' + PLAN)).plan)
    assert asked == [("test", 3, 60, 12)] * 2 and found[:3] == ("t", "d", 3)
    assert found.rows.document.tolist() == [4, 5, 5] and found.rows.below.tolist() == due


def test_a_variant_departs_that_is_larger_or_smaller_than_the_tolerance_allows(plan) -> None:
    read = read_plan(plan("parameter_tolerance = 0.1\n" + PLAN)).plan
    for count, shown in ((89, "-11.0%"), (111, "+11.0%")):
        (said,) = departures(read, {"one": 100, "other": count})
        assert shown in said and "'other'" in said
    assert departures(read, {"one": 100, "other": 91}) == departures(read, {"one": 100, "other": 109}) == []
    assert departures(attrs.evolve(read, parameters="any"), {"one": 100, "other": 900}) == []
