"""The runs of a plan: what each is, where it lies, and how far it is. Imports no torch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from muse_core.comparison.plan import ComparisonPlan, Read, Value, Variant, value_name, value_text
from muse_core.errors import RecipeError, StorageError
from muse_core.metrics.finished import NAME as SUMMARY
from muse_core.metrics.finished import Summary, read_summary
from muse_core.recipe import read_recipe, to_toml
from muse_core.recipe.lock import not_as_made, read_lock
from muse_core.storage.directory_lock import in_use

FAILED = "failed.txt"
"""File in a run directory that says why the run is not repeated."""
LOWER_IS_BETTER = {"bits_per_byte": True, "loss": True, "accuracy": False}


@attrs.frozen(kw_only=True)
class Cell:
    """One run of a plan."""

    variant: Variant
    seed: int
    value: Value | None
    """What the tuned key is set to; None leaves it to the recipe."""
    tuning: bool
    recipe: Path
    overrides: tuple[str, ...]
    path: Path
    """The run directory."""

    @property
    def name(self) -> str:
        return f"{self.variant.name}/{self.path.name}"

    def summary(self) -> Summary | None:
        """What the finished run reports; None before. Raises StorageError for a file that is not one."""
        return read_summary(self.path) if (self.path / SUMMARY).is_file() else None

    def failure(self) -> str | None:
        """Why the run failed, when it did; a run that was finished since has not."""
        if self.summary() is not None:
            return None
        file = self.path / FAILED
        return file.read_text(encoding="utf-8").strip() if file.is_file() else None

    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return self.failure() is not None or self.summary() is not None

    def in_use(self) -> bool:
        """Whether a process works on the run at this moment."""
        return in_use(self.path)

    def newest(self) -> tuple[str, ...]:
        """Names of what the run has saved so far; they change with every checkpoint."""
        return tuple(sorted(str(one.relative_to(self.path)) for one in self.path.rglob("gen-*")))

    def started(self) -> bool:
        """Whether there is a run, finished or to go on with. Raises StorageError when it is one of another recipe, such
        as an earlier version of the plan's."""
        file = self.path / "recipe.toml"
        if not file.is_file():
            return False
        try:
            found = read_recipe(file).resolved  # read anew, so that options that came since have their defaults
        except RecipeError as error:
            raise StorageError(f"{file}: cannot be read as a recipe here - {self._remedy()}:\n{error}") from None
        if to_toml(found) != to_toml(read_recipe(self.recipe, self.overrides).resolved):
            raise StorageError(
                f"{self.path}: holds a run of another recipe than the plan now asks for - choose another --output, or "
                "remove this folder to repeat the run"
            )
        return True

    def _remedy(self) -> str:
        """What to do about a run whose recipe is refused here: nobody should remove one that a plugin would open."""
        lacking = ""
        with contextlib.suppress(RecipeError):  # without its lock nothing is known of what made it
            lacking = not_as_made(read_lock(self.path / "muse.lock.toml"))
        return lacking or f"choose another --output, or remove {self.path} to repeat the run"


def tuning_cells(read: Read, output: Path, steps: Mapping[str, int] | None = None) -> list[Cell]:
    """The sweep: variant by variant for each value and seed, so that all are equally far at any time. ``steps`` of each
    variant, None for those of its recipe; variants without are left out. A single value needs no sweep."""
    tune = read.plan.tune
    if tune is None or not tune.runs:
        return []
    return [
        cell(read, output, variant, seed, value, tuning=True, steps=steps)
        for seed in tune.seeds
        for value in tune.values
        for variant in read.plan.variants
        if steps is None or variant.name in steps
    ]


def reported_cells(
    read: Read, output: Path, values: Mapping[str, Value | None], steps: Mapping[str, int] | None = None
) -> list[Cell]:
    """The runs with the values chosen, (variant → value); variants without one yet are left out. Seed by seed, since a
    seed counts once every variant has it. ``steps`` as in ``tuning_cells``."""
    return [
        cell(read, output, variant, seed, values[variant.name], tuning=False, steps=steps)
        for seed in read.plan.seeds
        for variant in read.plan.variants
        if variant.name in values and (steps is None or variant.name in steps)
    ]


def cell(
    read: Read, output: Path, variant: Variant, seed: int, value: Value | None, *, tuning: bool,
    steps: Mapping[str, int] | None = None,
) -> Cell:
    plan = read.plan
    own = [] if steps is None else [f"train.steps={steps[variant.name]}"]
    if value is not None:
        assert plan.tune is not None
        own.append(f"{plan.tune.key}={value_text(value)}")
    own += [f"seed={seed}", f'evaluate.split="{"validation" if tuning else plan.split}"']
    setting = "" if value is None else f"-{value_name(value)}"
    return Cell(
        variant=variant,
        seed=seed,
        value=value,
        tuning=tuning,
        recipe=read.recipe(variant),
        overrides=(*plan.set, *variant.set, *own),
        path=output / variant.name / f"{'tune' if tuning else plan.split}{setting}-seed-{seed}",
    )


def chosen_values(plan: ComparisonPlan, cells: Sequence[Cell]) -> dict[str, Value | None]:
    """Variant → the value with the best mean over seeds, for those whose sweep is settled. A value of which a run
    failed, or gave no finite number, is out."""
    if plan.tune is None or not plan.tune.runs:
        only = None if plan.tune is None else plan.tune.values[0]
        return {variant.name: only for variant in plan.variants}
    found: dict[str, Value | None] = {}
    for variant in plan.variants:
        own = [one for one in cells if one.variant.name == variant.name]
        scores = {value: score for value, score in scores_by_value(plan, own) if math.isfinite(score)}
        if scores and all(one.settled() for one in own):
            pick = min if LOWER_IS_BETTER[plan.measure] else max
            found[variant.name] = pick(scores, key=lambda value, scores=scores: scores[value])
    return found


def sweepless(plan: ComparisonPlan, cells: Sequence[Cell]) -> list[str]:
    """Variants whose sweep is settled and gave no value, because runs of each failed; nothing is left to run."""
    chosen = chosen_values(plan, cells)
    swept = {one.variant.name for one in cells}  # a budget of seconds leaves those out whose speed is not known
    return [
        variant.name for variant in plan.variants
        if variant.name in swept - chosen.keys()
        and all(one.settled() for one in cells if one.variant.name == variant.name)
    ]


def scores_by_value(plan: ComparisonPlan, cells: Sequence[Cell]) -> Iterator[tuple[Value, float]]:
    """(value, mean measure over seeds) of every value whose runs are all done."""
    assert plan.tune is not None
    for value in plan.tune.values:
        summaries = [one.summary() for one in cells if value_name(one.value) == value_name(value)]
        done = [summary[f"held_out_{plan.measure}"] for summary in summaries if summary is not None]
        if done and len(done) == len(summaries):
            yield value, sum(done) / len(done)
