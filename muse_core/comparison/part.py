"""A part of a plan, or a plan with other seeds or values, as the command line names them. Imports no torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import TypeVar

import attrs

from muse_core.comparison.plan import ComparisonPlan, Read, Tune, Value, Variant
from muse_core.errors import RecipeError
from muse_core.plugins.near import suggestion
from muse_core.recipe.overrides import read_value

Table = TypeVar("Table", Tune, ComparisonPlan)


def part_of(
    read: Read, *, arms: str | None = None, baseline: str | None = None, seeds: str | None = None,
    values: str | None = None,
) -> Read:
    """``read`` with the variants that ``arms`` names, in the plan's order, ``baseline`` in place of its own, and these
    ``seeds`` and ``values`` of the tuned key in place of the plan's; each is a text with commas, and None leaves the
    plan as it is. ``arms`` may have patterns, as ``phase5*``.

    Runs lie where they lie for the whole plan, so that a part is done once. Raises RecipeError, for a text that names
    nothing too.
    """
    plan = read.plan
    variants = plan.variants if arms is None else _variants(plan.variants, listed("--arms", arms))
    names = [variant.name for variant in variants]
    if baseline is not None:
        listed("--baseline", baseline)
        if baseline not in names:
            raise RecipeError(f"--baseline {baseline}: is not one of the variants {', '.join(names)}")
    elif plan.baseline not in names:
        raise RecipeError(
            f"--arms {arms}: leaves out {plan.baseline}, with which the plan compares - name it too, or another one "
            "with --baseline"
        )
    tune = plan.tune
    if values is not None:
        asked = listed("--values", values)
        if tune is None:
            raise RecipeError("--values: the plan has no [tune], so that there is nothing to sweep - leave it out")
        tune = _evolved("--values", tune, values=tuple(_value(one) for one in asked))
    own_seeds = plan.seeds if seeds is None else tuple(_seed(one) for one in listed("--seeds", seeds))
    plan = _evolved(
        "--seeds", plan, variants=tuple(variants), baseline=plan.baseline if baseline is None else baseline,
        seeds=own_seeds, tune=tune,
    )
    return attrs.evolve(read, plan=plan)


def listed(option: str, text: str | None) -> list[str]:
    """What stands between the commas of an option; nothing where it is not given. Raises RecipeError for one that is
    given and names nothing, as of a shell variable that is not set: it does not ask for the whole plan."""
    if text is None:
        return []
    found = [one.strip() for one in text.split(",") if one.strip()]
    if not found:
        raise RecipeError(f"{option} {text!r}: names nothing - name at least one, or leave the option out")
    return found


def _variants(known: Sequence[Variant], patterns: Sequence[str]) -> list[Variant]:
    names = [variant.name for variant in known]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise RecipeError(f"--arms {pattern}: is no variant of the plan{suggestion(pattern, names, 'it has')}")
    return [one for one in known if any(fnmatch.fnmatchcase(one.name, pattern) for pattern in patterns)]


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise RecipeError(f"--seeds {text}: must be whole numbers from 0 on, as 1,2,3")
    return int(text)


def _value(text: str) -> Value:
    try:
        value = read_value(text)
    except ValueError as error:
        raise RecipeError(f"--values: {error}") from None
    if not isinstance(value, bool | int | float | str):
        raise RecipeError(f"--values {text}: must be numbers, words or truth values, as 1e-3,2e-3")
    return value


def _evolved(option: str, table: Table, **changes: object) -> Table:
    try:
        return attrs.evolve(table, **changes)
    except ValueError as error:
        raise RecipeError(f"{option}: {error}") from None
