"""A run that is trained further than it was planned to be: ``muse-run --resume DIR --steps N`` or ``--extend N``."""

from __future__ import annotations

from typing import Any

import attrs

from muse_core.building import construct
from muse_core.data.kept import newest_folder
from muse_core.errors import RecipeError
from muse_core.metrics.jsonl import read_rows
from muse_core.recipe.lock import read_lock
from muse_core.recipe.schema import Recipe
from muse_core.recipe.writing import to_toml
from muse_core.storage.checkpoint import Checkpoints
from muse_core.storage.run_directory import RunDirectory
from muse_core.training.schedules import Rates
from muse_core.training.setup import Setup

LENGTH = ("recipe.train.steps", "recipe.train.schedule_steps")
"""The keys of a lock that a longer run changes."""


@attrs.frozen(kw_only=True)
class Longer:
    """A new number of planned steps for a run, and its schedule."""

    before: int
    steps: int
    schedule_steps: int | None
    """Steps that the schedule spans; None for all."""

    @classmethod
    def of(cls, directory: RunDirectory, recipe: Recipe, *, steps: int | None, extend: int | None) -> Longer | None:
        """``steps`` in all, with the schedule of a run of that length from here on; or ``extend`` steps more. These
        have the rate of the last step of the present schedule, unless the run has done only steps whose rates a longer
        schedule shares (the stable phase of wsd): then the schedule is that of the longer run, and no rate jumps. None
        where the run is still on the way to the end of ``extend`` steps that were asked for before: a command that is
        repeated, as by a queue, asks for no more.
        Raises RecipeError for a length that the run has passed and for a run of several stages."""
        if len(recipe.stages) > 1:
            raise RecipeError("--steps, --extend: this run has several stages, each with its own steps, and cannot be "
                              "made longer - start another run from it with init.from")
        train = recipe.train
        done = next((one.step for one in Checkpoints(directory.path).generations() if not one.abandoned), 0)
        if extend is not None:
            if done < train.steps and _asked_before(directory, train.steps) == extend:
                return None
            longer = train.steps + extend
            span = train.schedule_steps or train.steps
            unchanged = Rates(train).unchanged_until
            if unchanged and done <= unchanged:
                span = max(longer, span)
            return cls(before=train.steps, steps=longer, schedule_steps=None if span == longer else span)
        assert steps is not None
        if steps < done:
            raise RecipeError(f"--steps {steps}: the run has done {done} steps - name at least as many")
        return cls(before=train.steps, steps=steps, schedule_steps=None)

    @staticmethod
    def check(directory: RunDirectory, setup: Setup) -> None:
        """Raises RecipeError where the run's one stage does not train for ``train.steps`` steps, such as those of
        ``muse compress`` and ``muse import``: the new length would change nothing."""
        use = setup.recipe.stages[0]
        made = newest_folder(directory.path) != directory.path
        stage = None if made else construct(use, setup)
        if made or hasattr(stage, "settings") or stage.objective(setup.model, setup.training_data) is None:
            raise RecipeError(f"--steps, --extend: this run's stage {use.name!r} does not train by train.steps, so "
                              "that it cannot be made longer - start another run from it with init.from")

    @property
    def overrides(self) -> list[str]:
        """For ``read_recipe`` on the resolved recipe."""
        return [f"train.steps={self.steps}", f"train.schedule_steps={self.schedule_steps or self.steps}"]

    def write(self, directory: RunDirectory, recipe: str) -> None:
        """Puts the new length into the lock, then the resolved recipe into the run directory; killed in between, the
        same command does both again."""
        table = read_lock(directory.lock).table
        train = table["recipe"].setdefault("train", {})
        train["steps"], train["schedule_steps"] = self.steps, self.schedule_steps or self.steps
        directory.write("muse.lock.toml", to_toml(table))
        directory.write("recipe.toml", recipe)

    def event(self) -> dict[str, Any]:
        """Row of events.jsonl."""
        return {"event": "longer", "planned": self.before, "steps": self.steps, "schedule_steps": self.schedule_steps}

    def sentence(self) -> str:
        """For a person."""
        schedule = (
            f"the schedule is from here on that of a run of {self.steps} steps"
            if self.schedule_steps is None
            else f"after step {self.schedule_steps} the learning rate stays at that of the last planned step"
        )
        return f"{self.steps} steps instead of {self.before}; {schedule}"


def _asked_before(directory: RunDirectory, steps: int) -> int | None:
    """By how many steps the run was made as long as it is; None for one that has the length it began with."""
    rows = [row for row in read_rows(directory.events) if row.get("event") == "longer"]
    return rows[-1]["steps"] - rows[-1]["planned"] if rows and rows[-1]["steps"] == steps else None
