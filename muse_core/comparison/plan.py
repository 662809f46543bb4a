"""What a plan holds, and reading it. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import attrs
from attrs import field, validators

from muse_core.errors import RecipeError
from muse_core.recipe.check import read_table
from muse_core.recipe.overrides import read_value
from muse_core.recipe.paths import read_path

Value = bool | int | float | str
"""Of a tuned key."""
NAME = validators.matches_re(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


OWN_NAMES = ("jobs", "log.txt", "report.csv", "report.json", "report.md", "report.tex", "run.lock", "run.lock.holder")
"""In the folder of a comparison, besides a folder for each variant."""


@attrs.frozen(kw_only=True)
class Variant:
    """A variant: one of the recipes that are compared."""

    name: str = field(validator=NAME)
    """Name in the table and of the folder of its runs."""
    recipe: str
    """Path of the recipe, relative to the plan."""
    set: tuple[str, ...] = ()
    """Overrides, written as for ``muse-run --set``."""


@attrs.frozen(kw_only=True)
class Tune:
    """A sweep of one key for every variant, with the same effort. It is judged on validation text and its runs are not
    reported."""

    key: str
    """Which key, as ``train.learning_rate``."""
    values: tuple[bool | int | float | str, ...] = field(validator=validators.min_len(1))
    """What is tried: numbers, words or truth values, each as the key takes it. One alone is taken as it is."""
    seeds: tuple[int, ...] = field(default=(0,), validator=validators.min_len(1))
    """Seeds of these runs; the value with the best mean is taken."""

    def __attrs_post_init__(self) -> None:
        endless = next((one for one in self.values if isinstance(one, float) and not math.isfinite(one)), None)
        if endless is not None:
            raise ValueError(f"values: {endless} is no finite number, and no option takes another")
        _once("value", [value_name(value) for value in self.values])
        _once("seed", self.seeds)

    @property
    def runs(self) -> int:
        """How many runs of a variant choose its value; none where there is one value and nothing to choose."""
        return len(self.values) * len(self.seeds) if len(self.values) > 1 else 0


def _once(what: str, given: Sequence[str | int]) -> None:
    """A run that counts twice would be taken for two. Raises ValueError."""
    twice = sorted({one for one in given if given.count(one) > 1})
    if twice:
        raise ValueError(f"{what}s: {twice[0]} is there twice - name every {what} once")


@attrs.frozen(kw_only=True)
class Budget:
    """Equal training time in place of equal steps.

    Every variant is first trained alone for a few steps; the time of one of them decides how many steps its other runs
    have, and their schedules span these. A run thus stays a function of its recipe: it can be repeated, be resumed and
    share a machine, and its last step has the last rate of the schedule.
    """

    seconds: float = field(validator=validators.gt(0.0))
    """Training time of a run: steps on this machine, without start, compilation, evaluation and checkpoints."""
    measured_steps: int = field(default=60, validator=validators.ge(6))
    """Steps of the run that measures a variant; those after the first third count."""


RATES = (
    "train.learning_rate", "train.optimizer.learning_rate", "train.weight_decay", "train.warmup_steps",
    "train.final_rate", "train.clip_norm",
)
"""Keys that leave the time of a step alone."""
OWN_KEYS = ("seed", "evaluate.split")
"""Keys of recipes that a plan sets in every run."""


def value_name(value: Value) -> str:
    """A tuned value in reports and in names of folders; different values have different names."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,39}", value):
        return value
    word = re.sub(r"[^A-Za-z0-9_-]+", "-", value)[:24]
    return f"{word}-{hashlib.sha256(value.encode()).hexdigest()[:8]}"


def value_text(value: Value) -> str:
    """A tuned value as ``--set`` takes it."""
    if isinstance(value, str):
        return json.dumps(value)
    return value_name(value) if isinstance(value, bool) else repr(value)


@attrs.frozen(kw_only=True)
class ComparisonPlan:
    """Variants, what is tuned for each of them, and the runs that are reported."""

    title: ClassVar[str] = "a plan"

    format: Literal[1] = 1
    """Version of the format."""
    name: str = field(validator=NAME)
    """Name of the folder of the comparison."""
    variants: tuple[Variant, ...] = field(validator=validators.min_len(1), metadata={"key": "arms"})
    """The variants that are compared."""
    baseline: str
    """The variant that every other one is compared with."""
    set: tuple[str, ...] = ()
    """Overrides of all variants, before their own."""
    tune: Tune | None = None
    """The sweep before the reported runs, if any."""
    budget: Budget | None = None
    """Equal seconds of training; the recipes' own steps without it."""
    seeds: tuple[int, ...] = field(default=(1, 2, 3), validator=validators.min_len(1))
    """Seeds of the reported runs. Runs with one seed read the same text in the same order in every variant."""
    split: Literal["validation", "test"] = "test"
    """Text of the reported figures."""
    measure: Literal["bits_per_byte", "loss", "accuracy"] = "bits_per_byte"
    """What is compared: a ratio of bits or nats, lower being better, or a difference of accuracies."""
    parameters: Literal["refuse", "warn", "any"] = "refuse"
    """What to do with a variant whose number of parameters departs from the baseline's."""
    count: Literal["all", "active"] = "all"
    """Which parameters: all, or those that a token passes, without experts that it does not use."""
    parameter_tolerance: float = field(default=0.02, validator=[validators.ge(0.0), validators.lt(1.0)])
    """Departure, as a share of the baseline's, from which it does."""
    watch: tuple[str, ...] = ()
    """Patterns of metrics in metrics.jsonl, as ``*/decay_max``: their first and last values in training or probes are
    reported, and those of the held-out text."""

    @property
    def parameter_kind(self) -> str:
        """The parameters that are counted, in words."""
        return "active parameters" if self.count == "active" else "parameters"

    def __attrs_post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two variants are called {twice[0]!r} - give every variant its own name")
        if taken := [name for name in names if name in OWN_NAMES]:
            raise ValueError(f"a variant is called {taken[0]!r}, as is what a comparison writes beside the folders of "
                             "variants - give it another name")
        if self.baseline not in names:
            raise ValueError(f"baseline {self.baseline!r} is not one of the variants {', '.join(names)}")
        _once("seed", self.seeds)
        seeds = self.tune.seeds if self.tune and self.tune.runs else ()
        if self.split == "test" and set(seeds) & set(self.seeds):
            raise ValueError(
                f"seed {min(set(seeds) & set(self.seeds))} is both tuned and reported - give the sweep its own seeds, "
                "so that what is reported was not chosen for its luck"
            )


@attrs.frozen(kw_only=True)
class Read:
    """A plan and where its recipes lie."""

    plan: ComparisonPlan
    folder: Path

    def recipe(self, variant: Variant) -> Path:
        return Path(os.path.normpath(self.folder / variant.recipe))


def read_plan(path: Path, overrides: Iterable[str] = ()) -> Read:
    """Reads a plan; ``overrides`` are those of all variants, after the plan's own. Raises RecipeError with every
    problem, one line each, as for recipes."""
    plan: ComparisonPlan = read_table(path, ComparisonPlan)
    plan = attrs.evolve(plan, set=(*plan.set, *overrides))
    problems = []
    tuned = None
    if plan.tune is not None:
        try:
            tuned = read_path(plan.tune.key)
        except ValueError as error:
            problems.append(f"{path}: tune.key: {error}")
        if plan.tune.key.strip() in OWN_KEYS:
            problems.append(f"{path}: tune.key: {plan.tune.key} is the plan's own business - use its seeds and split")
        if plan.budget is not None and plan.tune.key not in RATES:
            problems.append(
                f"{path}: tune.key: {plan.tune.key} may change the time of a step, which is measured once a variant - "
                f"with a budget of seconds sweep one of {', '.join(RATES)}"
            )
    own = ((f"arms[{index}].set", variant.set) for index, variant in enumerate(plan.variants))
    for place, texts in (("set", plan.set), *own):
        for text in texts:
            key, equals, value = text.partition("=")
            try:
                if not equals:
                    raise ValueError(f"{text!r} has no '=' - write \"train.steps=100\"")
                if read_path(key.strip()) == tuned:
                    problems.append(
                        f"{path}: {place}: {key.strip()} is what tune sweeps, whose values would replace this one - "
                        "leave it out"
                    )
                read_value(value)
            except ValueError as error:
                problems.append(f"{path}: {place}: {error}")
            if key.strip() in OWN_KEYS:
                problems.append(f"{path}: {place}: {key.strip()} is the plan's own business - use its seeds and split")
            if plan.budget is not None and key.strip() in ("train.steps", "train.schedule_steps"):
                problems.append(f"{path}: {place}: {key.strip()} follows from the budget of seconds - leave it out")
    if problems:
        raise RecipeError(problems)
    return Read(plan=plan, folder=path.parent)
