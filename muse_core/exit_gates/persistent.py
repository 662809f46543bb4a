"""What normalising by persistent memory does, in recipes that have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muse_core.component import walk
from muse_core.exit_gates.bench import Bench
from muse_core.exit_gates.findings import Finding, failed, judged, not_applicable

OPTION = "norm_persistent"
MOST_STEPS = 200


def norm_persistent(bench: Bench) -> Finding:
    """Trains the recipe with the option on and off, from equal weights on equal data, and compares held-out text."""
    recipe = bench.checked.recipe
    chosen = {getattr(use.options, OPTION) for use in walk(recipe.model.options) if hasattr(use.options, OPTION)}
    if not chosen:
        return not_applicable(f"no layer of the recipe has an option {OPTION}")
    steps = min(bench.steps, MOST_STEPS)
    found = {}
    for value in (True, False):
        table = bench.checked.resolved | {"model": switched(bench.checked.resolved["model"], value)}
        changes = {
            "train": {"steps": steps, "max_seconds": 1e9},
            # It is measured below, once.
            "evaluate": {"every": steps + 1, "final_tokens": recipe.train.batch_size * recipe.train.sequence_length},
            "checkpoint": {"every": steps + 1},
            "stages": [{"use": "train"}],
            "monitors": [],
        }
        run = bench.train(bench.variant({**changes, "model": table["model"]}), f"{OPTION}-{str(value).lower()}")
        if run.halted:
            return failed(f"with {OPTION} = {str(value).lower()} the run was halted", run.halted)
        found[value] = run.setup.evaluate(recipe.evaluate.split, recipe.evaluate.tokens)
    on, off = found[True], found[False]
    figure = f"after {steps} steps {on.bits_per_byte:.4f} bits/byte with it, {off.bits_per_byte:.4f} without"
    better = min(found.values(), key=lambda one: one.bits_per_byte)
    other = off if better is on else on
    worse = len(chosen) == 1 and found[next(iter(chosen))] is other and better.high < other.low
    reason = f"it changes nothing: {OPTION} is a dead option" if on.loss == off.loss else (
        f"the recipe has {OPTION} = {str(next(iter(chosen))).lower()}, which is worse beyond the intervals - switch it"
    )
    return judged(
        on.loss != off.loss and not worse, figure, reason,
        bits_per_byte_with=on.bits_per_byte, bits_per_byte_without=off.bits_per_byte, steps=steps,
    )


def switched(value: Any, to: bool) -> Any:
    """A table with every option of that name set."""
    if isinstance(value, Mapping):
        return {key: to if key == OPTION else switched(item, to) for key, item in value.items()}
    return [switched(item, to) for item in value] if isinstance(value, list) else value
