"""Whether the runs of a plan can start, and whether its variants are of one size. Builds each model once, on the CPU,
before any of them trains."""

from __future__ import annotations

from pathlib import Path

import attrs

from muse_core.comparison.cells import Cell, cell
from muse_core.comparison.plan import ComparisonPlan, Read
from muse_core.errors import MuseError, RecipeError
from muse_core.model.flops import active_parameters
from muse_core.recipe import read_recipe
from muse_core.training.setup import Setup, set_up


def count_parameters(read: Read, output: Path) -> dict[str, int]:
    """Variant → parameters, all or active as the plan says, with the recipe's own values. Raises RecipeError with every
    problem of every run that cannot start, the swept values tried in every variant, naming both."""
    counts, problems = {}, []
    for variant in read.plan.variants:
        built: dict[str, Setup] = {}
        for value in (None, *(read.plan.tune.values if read.plan.tune else ())):
            setting = "" if value is None or read.plan.tune is None else f" with {read.plan.tune.key}={value!r}"
            try:
                setup = _tried(cell(read, output, variant, read.plan.seeds[0], value, tuning=False), built)
            except MuseError as error:
                found = error.problems if isinstance(error, RecipeError) else [str(error)]
                problems += [f"variant {variant.name!r}{setting}: {problem}" for problem in found]
                continue
            if value is None:
                counts[variant.name] = (
                    active_parameters(setup.model) if read.plan.count == "active"
                    else sum(parameter.numel() for parameter in setup.model.parameters())
                )
    if problems:
        raise RecipeError(problems)
    return counts


def _tried(one: Cell, built: dict[str, Setup]) -> Setup:
    """The set-up of a run, taken from ``built`` where only its training differs, with everything made that its first
    step needs. Raises MuseError."""
    checked = read_recipe(one.recipe, (*one.overrides, "train.device=cpu"))
    key = repr([(name, part) for name, part in checked.resolved.items() if name not in ("train", "seed", "evaluate")])
    if key not in built:
        built.clear()  # one model at a time
        built[key] = set_up(checked.recipe, checked.registry)
    setup = attrs.evolve(built[key], recipe=checked.recipe)
    setup.training_data()
    return setup


def departures(plan: ComparisonPlan, counts: dict[str, int]) -> list[str]:
    """A sentence for every variant whose size is too far from the baseline's; none under ``parameters = "any"``."""
    if plan.parameters == "any":
        return []
    base = counts[plan.baseline]
    return [
        f"variant {name!r} has {count:,} {plan.parameter_kind}, {count / base - 1:+.1%} against {base:,} of the "
        f"baseline {plan.baseline!r}, more than parameter_tolerance = {plan.parameter_tolerance:g} allows - change its "
        'width, depth or multiples, or say parameters = "warn"'
        for name, count in counts.items()
        if abs(count / base - 1) > plan.parameter_tolerance
    ]
