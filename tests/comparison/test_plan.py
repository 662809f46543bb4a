"""Plans are as strict as recipes, and say which runs there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from muse_core.building import build_model
from muse_core.cli.compare import compare
from muse_core.comparison.cells import chosen_values, reported_cells, sweepless, tuning_cells
from muse_core.comparison.plan import read_plan
from muse_core.comparison.report import compose, text_of
from muse_core.comparison.runs import Comparison
from muse_core.contracts import Tokens
from muse_core.errors import RecipeError, StorageError
from muse_core.recipe import read_recipe, to_toml
from muse_core.testing.cases import installed
from tests.comparison.conftest import PLAN, ended, finish

PLANS = sorted((Path(__file__).parents[2] / "recipes" / "experiments").glob("*.plan.toml"))


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
        ("model.depth=3", "train.learning_rate=3", "arms[1].set: train.learning_rate is what tune sweeps"),
        ('key = "train.learning_rate"', 'key = "seed"', "tune.key: seed is the plan's own business"),
        ('key = "train.learning_rate"', 'key = "evaluate.split"', "tune.key: evaluate.split is the plan's own"),
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


def test_runs_of_the_sweep_that_time_cut_short_are_said_so(plan, tmp_path: Path) -> None:
    read, out = read_plan(plan()), tmp_path / "out"
    for cell in tuning_cells(read, out):
        finish(cell, 2.0)
    assert "cut short" not in text_of(compose(read.plan, Comparison(read, out).runs()))
    for cell in tuning_cells(read, out)[:3]:
        summary = {"held_out_bits_per_byte": 2.0, "stopped_by_time": True}
        (cell.path / "summary.json").write_text(json.dumps(summary))
    said = text_of(compose(read.plan, Comparison(read, out).runs()))
    assert "3 runs of the sweep were cut short by train.max_seconds." in said


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
    with pytest.raises(StorageError, match="cannot be read as a recipe here - choose another --output, or remove"):
        cell.started()


def test_a_run_whose_plugin_is_gone_asks_for_the_plugin_and_not_to_be_removed(plan, tmp_path: Path) -> None:
    cell = tuning_cells(read_plan(plan()), tmp_path / "out")[0]
    cell.path.mkdir(parents=True)
    (cell.path / "recipe.toml").write_text('format = 2\nname = "x"\nmodel = { block = ["of-others"] }\n')
    plugin = {"name": "muse-of-others", "version": "1.0", "digest": "0"}
    lock = {"format": 1, "recipe": {"name": "x"}, "plugins": [plugin]}
    (cell.path / "muse.lock.toml").write_text(to_toml(lock))
    with pytest.raises(StorageError) as refused:
        cell.started()
    assert "muse-of-others 1.0 (not installed here) - install what made it" in str(refused.value)
    assert "there is no" in str(refused.value) and "remove" not in str(refused.value)


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
        ended(cell, document, {"nats": nats, "hits": [0, 0], "bytes": [10, 10], "tokens": [10, 10]})
    text = text_of(compose(read.plan, Comparison(read, out).runs()))
    line = next(line for line in text.splitlines() if line.startswith("| other"))
    assert "| 0.7647 |" in line and (" to " in line) == (document == [0, 1])
    assert ("there is no interval" in text) == (document == [0, 0])


def test_a_report_says_which_variants_other_kernels_computed(plan, tmp_path: Path) -> None:
    read, out = read_plan(plan(PLAN.partition("[tune]")[0])), tmp_path / "out"
    cells = reported_cells(read, out, {"one": None, "other": None})
    for cell in cells:
        ended(cell, [0], {"nats": [1.0], "hits": [0], "bytes": [1], "tokens": [1]})

    def computed(**backends: str) -> None:
        for cell in cells:
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


def test_a_ratio_over_fewer_seeds_than_the_means_beside_it_says_so(plan, tmp_path: Path) -> None:
    """One run of each variant failed, of different seeds: one pair is left, which knows no spread of training."""
    read, out = read_plan(plan(PLAN.partition("[tune]")[0].replace("[1, 2]", "[1, 2, 3]"))), tmp_path / "out"
    for cell in reported_cells(read, out, {"one": None, "other": None}):
        nats = [8.0 + cell.seed, 9.0]
        ended(cell, [0, 1], {"nats": nats, "bytes": [10, 10], "tokens": [10, 10]})
    apart, alone = "the ratio is over the", "With one seed the interval is of the text alone"
    text = text_of(compose(read.plan, Comparison(read, out).runs()))
    assert apart not in text and alone not in text
    missing = {("one", 1), ("other", 2)}
    for cell in reported_cells(read, out, {"one": None, "other": None}):
        if (cell.variant.name, cell.seed) in missing:
            (cell.path / "summary.json").unlink()
            (cell.path / "failed.txt").write_text("exit code 4: it diverged\n")
    text = text_of(compose(read.plan, Comparison(read, out).runs()))
    assert f"other has the seeds 1, 3 and one 2, 3: {apart} 1 that both have" in text and alone in text
