"""Whether the variants of a plan are trained alike: as many steps, of rows as many and as long. Imports no torch."""

from __future__ import annotations

from typing import Any

from muse_core.comparison.cells import cell
from muse_core.comparison.plan import Read, Variant
from muse_core.recipe import read_recipe

ALIKE = {
    "steps": "train.steps", "batch_size": "train.batch_size", "sequence_length": "train.sequence_length",
}
"""What decides how much a run reads and in which order: key of the table train → its name."""


def unlike_training(read: Read) -> list[str]:
    """A sentence for each variant that reads more, less or other rows in training than the baseline, by the recipes and
    with the plan's own values; what the plan tunes, and steps that follow from a budget, are left out."""
    keys = {
        key: name for key, name in ALIKE.items()
        if not (read.plan.tune and read.plan.tune.key.strip() == name) and not (read.plan.budget and key == "steps")
    }
    tables = {variant.name: _trained(read, variant) for variant in read.plan.variants}
    base = tables[read.plan.baseline]
    found = []
    for name, table in tables.items():
        other = [f"{keys[key]} {table[key]:,} for {base[key]:,}" for key in keys if table[key] != base[key]]
        if other:
            found.append(f"{name} is trained otherwise than {read.plan.baseline}, {', '.join(other)}: what sets them "
                         "apart is that too")
    return found


def _trained(read: Read, variant: Variant) -> dict[str, Any]:
    one = cell(read, read.folder, variant, read.plan.seeds[0], None, tuning=False)
    return dict(read_recipe(one.recipe, one.overrides).resolved["train"])
