"""Equal training seconds: how many steps a variant makes in them, from a short run of each. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from muse_core.comparison.cells import Cell
from muse_core.comparison.plan import Read
from muse_core.errors import StorageError
from muse_core.metrics.jsonl import read_rows

ROWS = 12
"""Telemetry rows of a measuring run; each third of them is as many steps."""


def measuring_cells(read: Read, output: Path) -> list[Cell]:
    """One short run a variant, of its recipe's own learning rate; none without a budget."""
    budget = read.plan.budget
    if budget is None:
        return []
    own = (
        f"train.steps={budget.measured_steps}",
        f"train.log_every={max(1, budget.measured_steps // ROWS)}",
        'evaluate.halt_above="never"',
        "seed=0",
        'evaluate.split="validation"',
    )
    return [
        Cell(
            variant=variant, seed=0, value=None, tuning=True, recipe=read.recipe(variant),
            overrides=(*read.plan.set, *variant.set, *own), path=output / variant.name / "speed",
        )
        for variant in read.plan.variants
    ]


def steps_in_time(read: Read, output: Path) -> dict[str, int] | None:
    """Variant → steps that it makes in the plan's seconds, for those that are measured; None without a budget.

    Raises StorageError for a measuring run whose rows tell no speed.
    """
    if read.plan.budget is None:
        return None
    return {
        cell.variant.name: max(1, int(read.plan.budget.seconds / seconds_a_step(cell.path)))
        for cell in measuring_cells(read, output) if cell.summary() is not None
    }


def seconds_a_step(run: Path) -> float:
    """The median over rows of training after the first third of a run, in which kernels are compiled. Raises
    StorageError where the run has no two such rows."""
    rows = [row for row in read_rows(run / "metrics.jsonl") if row.get("event") == "train"]
    found = list(_between(rows, rows[-1]["step"] / 3)) if rows else []
    if not found:
        raise StorageError(f"{run}: its metrics.jsonl tells no seconds of steps - remove this folder to measure again")
    return median(found)


def _between(rows: list[dict], first: float) -> Iterator[float]:
    """Seconds a step from each row to the next after ``first`` steps; an interrupted run tells some steps twice."""
    for one, other in zip(rows, rows[1:]):
        seconds = float(other["seconds"]) - float(one["seconds"])  # NaN where it is not known
        if first <= one["step"] < other["step"] and seconds > 0:
            yield seconds / (other["step"] - one["step"])
