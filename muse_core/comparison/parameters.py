"""Whether the arms of a plan are of one size. Builds each model once, on the CPU, before any of them trains."""

from __future__ import annotations

from muse_core.comparison.plan import ComparisonPlan, Read
from muse_core.errors import RecipeError
from muse_core.model.flops import active_parameters
from muse_core.recipe import read_recipe
from muse_core.training.setup import set_up


def count_parameters(read: Read) -> dict[str, int]:
    """Arm → parameters, all or active as the plan says. Raises RecipeError for a recipe that cannot be built,
    naming the arm."""
    counts = {}
    for arm in read.plan.arms:
        try:
            checked = read_recipe(read.recipe(arm), (*read.plan.set, *arm.set, "train.device=cpu"))
            setup = set_up(checked.recipe, checked.registry)
        except RecipeError as error:
            raise RecipeError([f"arm {arm.name!r}: {problem}" for problem in error.problems]) from None
        if read.plan.count == "active":
            counts[arm.name] = active_parameters(setup.model)
        else:
            counts[arm.name] = sum(parameter.numel() for parameter in setup.model.parameters())
    return counts


def departures(plan: ComparisonPlan, counts: dict[str, int]) -> list[str]:
    """A sentence for every arm whose size departs too far from the baseline's; none under ``parameters = "any"``."""
    if plan.parameters == "any":
        return []
    base = counts[plan.baseline]
    return [
        f"arm {name!r} has {count:,} {plan.parameter_kind}, {count / base - 1:+.1%} against {base:,} of the baseline "
        f"{plan.baseline!r}, more than parameter_tolerance = {plan.parameter_tolerance:g} allows - change its width, "
        'depth or multiples, or say parameters = "warn"'
        for name, count in counts.items()
        if abs(count / base - 1) > plan.parameter_tolerance
    ]
